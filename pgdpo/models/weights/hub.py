"""A model on the Hugging Face Hub: one commit of it, whose files lie in the hub's own cache.

Configurations and tokenizers come when a model is opened, weights when a part is asked for, or before: `download_first`
has one rank of each node download what a run needs while the others wait, told for what, and no collective runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pgdpo.config.model import ModelConfig
from pgdpo.files.pipeline import is_hub_id
from pgdpo.files.reach import reach, silent
from pgdpo.messages.console import ProgressTask, is_main_rank, progress_bar, say_once
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import moved

if TYPE_CHECKING:
    import torch.distributed as dist

SMALL = ("*.json", "*.txt", "*.model", "*.jinja")  # configurations, tokenizers, indexes of weights
# Weights in other formats and precisions, which lie beside those that are loaded.
OTHERS = ("*.bin", "*.pt", "*.ckpt", "*.h5", "*.msgpack", "*.onnx*", "*.fp16.*", "*.bf16.*")
POLL = 0.5  # seconds between two looks at whether the other nodes have the model
GRACE = 4 * POLL  # in which all ranks hear of a download that failed
MB = 1_000_000

_commits: dict[tuple[str, str | None], str] = {}  # what this process takes (repository, revision) for


def take(model: ModelConfig, commit: str) -> None:
    """Let this process take `commit` for what the model's path and revision name, whatever the hub says by now."""
    _commits[model.path, model.revision] = commit


def commit_of(model: ModelConfig) -> str | None:
    """The commit that the model is of; None for one that is no hub's. Raises as `snapshot`."""
    return snapshot(model).name if is_hub_id(model.path) else None


def snapshot(model: ModelConfig, *parts: str) -> Path:
    """The folder of the model's commit, with its small files and the weights of `parts`, downloaded where they are not
    here. Raises InputError where they are neither here nor to be had."""
    named = model.path, model.revision
    if named not in _commits:
        _commits[named] = _download(*named).name
    return _download(model.path, _commits[named], *parts)


@functools.cache
def _download(repository: str, revision: str | None, *parts: str) -> Path:
    """The local folder of a revision; a commit of which all is here is asked of nobody."""
    from huggingface_hub import snapshot_download

    wanted = [*SMALL, *(f"{part}/*" for part in parts)]
    fetch = functools.partial(
        snapshot_download, repository, revision=revision, allow_patterns=wanted, ignore_patterns=[*OTHERS]
    )
    with _refused(repository, revision):
        if not parts:
            reach(repository)
            return Path(fetch(tqdm_class=silent()))
        with contextlib.suppress(FileNotFoundError):  # a part of it isn't here
            return Path(fetch(local_files_only=True))
        size = 0
        with contextlib.suppress(OSError):  # what is wrong, the download itself says
            files = fetch(dry_run=True, tqdm_class=silent())
            size = sum(file.file_size for file in files if file.will_download)
        with progress_bar(f"download {repository}, MB", total=max(1, size // MB)) as bar:
            folder = Path(fetch(tqdm_class=_counting(bar, repository)))
            bar.finish()
    return folder


@contextlib.contextmanager
def _refused(repository: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (OSError, ValueError, HTTPError) as error:
        at = f" at model.revision {revision!r}" if revision else ""
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.path is {repository!r}: it cannot be read from the hub{at} ({reason}): give a local diffusers "
            "folder, or a hub id and a revision that this machine reaches"
        ) from error


def _counting(bar: ProgressTask, repository: str) -> type:
    """A progress bar for huggingface_hub that moves ours on by the bytes that its own of bytes, or of files, count."""
    lock, shown = threading.Lock(), [0]

    class Counting(silent()):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            self._counts = options.get("unit") == "B"
            self._bytes = 0

        def update(self, n: float | None = 1) -> None:
            with lock:
                self._bytes += int(n or 0) if self._counts else 0
                further = self._bytes // MB - shown[0]  # several bars may count the same bytes
                if further > 0:
                    shown[0] += further
                    bar.advance(further)
                    moved(f"downloading {repository}, {shown[0]} MB")

    return Counting


def download_first(model: ModelConfig, parts: Callable[[], Sequence[str]], store: dist.Store) -> None:
    """Have the model on every node before any rank waits in a collective: those end by their timeout, a download of a
    large model doesn't.

    `parts`: whose weights are needed, asked for where the model can be opened. `store`: the launcher's, which all ranks
    have reached. One rank of each node downloads the commit that the main rank found. Raises InputError on all ranks
    where one of them cannot.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if not is_hub_id(model.path):
        return
    if ranks == 1:
        snapshot(model, *parts())
        return
    with _told_to_all(store):
        if is_main_rank():
            store.set("hub/commit", commit_of(model))
        _wait(store, lambda: store.check(["hub/commit"]), f"waiting for the commit of {model.path}")
        take(model, store.get("hub/commit").decode())
        if os.environ.get("LOCAL_RANK", "0") == "0":
            snapshot(model, *parts())
        store.add("hub/here", 1)
        text = f"{model.path} is here; waiting for other nodes, which still download it"
        _wait(store, lambda: store.add("hub/here", 0) >= ranks, text)


@contextlib.contextmanager
def _told_to_all(store: dist.Store) -> Iterator[None]:
    """What goes wrong on one rank ends them all, with its message."""
    from torch.distributed import DistError

    try:
        yield
    except DistError as error:
        raise InputError("the main rank has ended: its message stands above, or in its log") from error
    except BaseException as error:
        store.set("hub/refused", str(error) or type(error).__name__)
        time.sleep(GRACE)  # the main rank may hold the store, where the others read that
        raise


def _wait(store: dist.Store, done: Callable[[], bool], what: str) -> None:
    """Until `done`, as long as it takes. Raises InputError where another rank's download failed."""
    while not done():
        if store.check(["hub/refused"]):
            raise InputError(store.get("hub/refused").decode())
        moved(what)
        say_once(what)
        time.sleep(POLL)
