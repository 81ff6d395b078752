"""accelerate with FSDP2 on two ranks."""

from pathlib import Path

TRAINER = "accelerate, FSDP2"
PACKAGES = ("accelerate", "diffusers")
DTYPE = "float32"
SCOPE = "whole script"


def command(source: Path, work: Path) -> list:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", source / "train.py"]
