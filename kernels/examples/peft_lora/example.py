"""peft's LoRA in a plain loop, the adapter switched off for the reference."""

from pathlib import Path

TRAINER = "peft, LoRA"
PACKAGES = ("peft", "diffusers")
DTYPE = "float32"
GAIN = 250  # half of beta
SCOPE = "whole script"


def command(source: Path, work: Path) -> list:
    return [source / "train.py"]
