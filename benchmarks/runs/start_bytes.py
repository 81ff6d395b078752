"""Bytes that each rank reads of prepared pairs, checkpoints and the reference's errors before the first step:

    python -m benchmarks.runs.start_bytes --name after

-> results/start_bytes.json, under that name. Eight gloo ranks on this machine, all weights of a tiny Wan, ZeRO-3.
Counted is what is read through safetensors files and what tensors are taken out of mapped ones, also where the page
cache gave it; of `pgdpo reference` all that it reads to its end. The base model's own weights are left out. Files are
small and many, as eight ranks of a large run have them: `of` is the size of all, beside which the rest stands.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import sys
import tempfile
from collections import Counter
from pathlib import Path

from pgdpo.evaluation.evaluate import machine, versions
from tests.ranks import Ranks, Zygote
from tests.worlds import run_pgdpo, save_tiny_wan, write_config

from ..report import RESULTS

FILE = RESULTS / "start_bytes.json"
RANKS = 8
KINDS = ("prepared", "checkpoints", "reference")
SHARD_BYTES = 1 << 17  # of a checkpoint's file, in the place of 256 MB

counts: Counter = Counter()


def counted(command: list[str]) -> dict[str, int]:
    """Run a command in this rank. Returns the bytes that it read, by kind of file."""
    import safetensors

    from pgdpo.checkpoints import shards
    from pgdpo.training.trainer import Trainer

    shards.SHARD_BYTES = SHARD_BYTES
    pathlib.Path.open = _open
    for name, module in list(sys.modules.items()):
        if name.startswith("pgdpo.") and getattr(module, "safe_open", None) is safetensors.safe_open:
            module.safe_open = Mapped
    started, train_on = [], Trainer._train_on

    def training(self):
        started.append(counts.copy())
        return train_on(self)

    Trainer._train_on = training
    run_pgdpo(*command)
    found = started[0] if started else counts
    return {kind: found[kind] for kind in KINDS}


def _add(path: object, size: int) -> None:
    for kind in KINDS:
        if f"/{kind}/" in str(path) and str(path).endswith(".safetensors"):
            counts[kind] += size


class Read(io.FileIO):
    """A file that counts what is read of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r")
        self._path = path

    def readinto(self, buffer) -> int:
        size = super().readinto(buffer)
        _add(self._path, size or 0)
        return size

    def readall(self) -> bytes:
        data = super().readall()
        _add(self._path, len(data))
        return data


_whole_open = pathlib.Path.open


def _open(self, mode="r", buffering=-1, encoding=None, errors=None, newline=None):
    if set(mode) & set("wax+"):
        return _whole_open(self, mode, buffering, encoding, errors, newline)
    raw = Read(self)
    if buffering == 0:
        return raw
    buffered = io.BufferedReader(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)


class Mapped:
    """A safetensors file that counts the tensors taken out of it."""

    def __init__(self, path, framework: str = "pt") -> None:
        from safetensors import safe_open

        self._path, self._file = path, safe_open(path, framework)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def get_tensor(self, name: str):
        tensor = self._file.get_tensor(name)
        _add(self._path, tensor.numel() * tensor.element_size())
        return tensor


def measure(folder: Path) -> dict:
    """Each stage's bytes a rank, by kind: least, most, and the size of all such files."""
    model = save_tiny_wan(folder / "tiny", layers=24)
    data = {"toy": {"train_pairs": 64, "held_out_pairs": 32}, "pairs_per_shard": 2}
    train = {"steps": 1, "global_batch_groups": RANKS, "micro_batch_groups": 1, "zero_stage": 3}
    train |= {"learning_rate": 1e-4, "checkpoint_every": 1, "cached_draws": 1}
    config = write_config(folder / "config.yaml", folder / "out", model, data=data, train=train)
    run_pgdpo("prepare", config)
    full = [str(config), "model.adapter=null"]
    cached = ["train.reference=cached", "train.steps=1"]
    stages = {
        "first start": ["train", *full, "evaluate.every=100", "name=first"],
        "start": ["train", *full, "evaluate.every=100", "name=second"],
        "resume": ["train", *full, "evaluate.every=100", "name=second", "--resume"],
        "pgdpo reference": ["reference", *full, *cached],
        "start with cached errors": ["train", *full, *cached, "name=third"],
    }
    zygotes, found = {False: Zygote()}, {}
    try:
        for name, command in stages.items():
            (folder / name).mkdir()
            from benchmarks.runs import start_bytes  # by its own name, for the ranks

            ranks = Ranks(zygotes, folder / name).call(start_bytes.counted, command, ranks=RANKS, timeout=600)
            found[name] = {kind: _summed([rank[kind] for rank in ranks], folder, kind) for kind in KINDS}
            print(name, json.dumps(found[name]), flush=True)
    finally:
        zygotes[False].close()
    return found


def _summed(read: list[int], folder: Path, kind: str) -> dict[str, int]:
    where = {
        "prepared": "out/prepared/*/*",
        "checkpoints": "out/second/checkpoints/*/*",
        "reference": "out/reference/*/*",
    }
    of = sum(file.stat().st_size for file in folder.glob(where[kind]) if file.suffix == ".safetensors")
    return {"least": min(read), "most": max(read), "all ranks": sum(read), "of": of}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, help="what the measured tree is called in the file")
    parser.add_argument("--file", type=Path, default=FILE)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder))
    merged = json.loads(given.file.read_text(encoding="utf-8")) if given.file.is_file() else {}
    merged[given.name] = {"ranks": RANKS, "bytes": measured, "machine": machine(), "versions": versions()}
    given.file.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
