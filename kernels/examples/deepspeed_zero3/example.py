"""DeepSpeed ZeRO-3 on two ranks, a second copy as the reference."""

from pathlib import Path

TRAINER = "DeepSpeed, ZeRO-3"
PACKAGES = ("deepspeed", "diffusers")
DTYPE = "float32"
GAIN = 250  # half of beta
SCOPE = "whole script"


def command(source: Path, work: Path) -> list:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", source / "train.py"]
