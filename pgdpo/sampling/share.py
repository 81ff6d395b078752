"""Work that ranks share: which parts are whose, and finished parts on disk, so that a stopped command goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist
from safetensors.torch import load_file, save_file

from pgdpo.files.atomic import atomic_path, hold, write_json
from pgdpo.messages.console import is_main_rank, progress_bar
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved, stage
from pgdpo.ranks.agreement import from_main, gather, on_main

T = TypeVar("T")
Part = TypeVar("Part", bound=Sized)


def share_of(parts: Sequence[T], rank: int, ranks: int, *, in_step: bool) -> Iterator[tuple[T, bool]]:
    """The parts that `rank` of `ranks` computes, each with whether the result is its own.

    `in_step`: the ranks compute each of theirs together, as weights that are sharded over them want it: all have
    equally many, filled up with a part that is another's.
    """
    for first in range(0, len(parts), ranks):
        own = first + rank < len(parts)
        if own or in_step:
            yield parts[first + rank if own else first], own


class Parts:
    """Finished parts of a command, each a file by name: JSON, or safetensors of named tensors.

        parts = Parts(folder, {"settings": ...})
        parts.make("clips", {"clips-0.safetensors": jobs, ...}, sample)      # those that are not there yet
        parts.read("clips-0.safetensors")
        parts.remove()                                                       # when the results are published

    All ranks make one together and call the same methods; the folder must be on a file system that they share. A
    folder of another `key` (JSON's values: all that decides what stands in the files) is begun anew. Raises InputError
    where another command works in the folder that it lies in.
    """

    def __init__(self, folder: Path, key: Mapping) -> None:
        self.folder = folder
        on_main(self._hold)
        if is_main_rank() and _read(folder / "key.json") != json.loads(json.dumps(key)):
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / "key.json", key)
        gather(None)

    def _hold(self) -> None:
        self._lock = hold(self.folder.parent)

    def drop(self, pattern: str) -> None:
        """Remove the parts of such names."""
        if is_main_rank():
            for path in self.folder.glob(pattern):
                path.unlink()
        gather(None)

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those that are not there, as the main rank sees it."""
        return from_main([name for name in names if not (self.folder / name).is_file()])

    def make(
        self,
        what: str,
        parts: Mapping[str, Part],
        make: Callable[[Part], object],
        *,
        in_step: bool = False,
    ) -> None:
        """Spread the parts that are missing over the ranks and write what `make` gives for each.

        `in_step` as `share_of` takes it. Raises InputError where the main rank does not see another's files.
        """
        stage(what)
        ranks = dist.get_world_size()
        own = list(share_of(self.missing(list(parts)), dist.get_rank(), ranks, in_step=in_step))
        share = f" (rank 0's share of {ranks})" if ranks > 1 else ""
        with progress_bar(f"{what}{share}", total=sum(len(parts[name]) for name, _ in own)) as bar:
            for number, (name, is_own) in enumerate(own):
                moved(f"{what}, part {number + 1} of {len(own)}")
                made = make(parts[name])
                if is_own:
                    _write(self.folder / name, made)
                bar.advance(len(parts[name]))
        stage(f"{what}, waiting for other ranks")
        gather(None)
        if lost := self.missing(list(parts)):
            raise InputError(
                f"{self.folder / lost[0]}: written by another rank and not to be seen here: results must go to a file "
                "system that all nodes share; name one with --out"
            )

    def read(self, name: str):
        """A part as it was made."""
        path = self.folder / name
        return load_file(path) if path.suffix == ".safetensors" else _read(path)

    def remove(self) -> None:
        if is_main_rank():
            shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write(path: Path, made: object) -> None:
    if path.suffix != ".safetensors":
        return write_json(path, made)
    with atomic_path(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in made.items()}, temporary)
