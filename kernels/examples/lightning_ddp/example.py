"""Lightning with DDP on two ranks, which it spawns: a patched model cannot be pickled, so that each patches its own."""

from pathlib import Path

TRAINER = "Lightning, DDP"
PACKAGES = ("lightning", "diffusers")
DTYPE = "float32"
SCOPE = "whole script"


def command(source: Path, work: Path) -> list:
    return [source / "train.py"]
