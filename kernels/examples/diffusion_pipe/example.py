"""diffusion-pipe's Wan: its own layers for DeepSpeed's pipeline, its inputs and its loss, on a tiny model."""

from __future__ import annotations

from pathlib import Path

TRAINER = "diffusion-pipe, Wan"
PACKAGES = ("deepspeed", "diffusers", "accelerate", "peft", "torchaudio", "torchvision", "transformers")
DTYPE = "float32"  # its autocast is a GPU's
SCOPE = "training step"
CHECKOUT = (
    "DIFFUSION_PIPE_CHECKOUT",
    "8f83dbf25d03219df705570ec03e62be04bc402f",
    ("models", "utils"),
)


def command(source: Path, work: Path) -> list:
    return [Path(__file__).with_name("step.py"), work]
