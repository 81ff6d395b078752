"""diffusion-pipe's Wan: its own layers for DeepSpeed's pipeline, its inputs and its loss, on a tiny model."""

from pathlib import Path

TRAINER = "diffusion-pipe, Wan"
PACKAGES = ("deepspeed", "diffusers", "accelerate", "transformers", "peft", "toml", "safetensors")
DTYPE = "bfloat16"
SCOPE = "training step"
CHECKOUT = (
    "DIFFUSION_PIPE_CHECKOUT",
    "8f83dbf25d03219df705570ec03e62be04bc402f",
    ("models", "utils"),
)


def command(source: Path, work: Path) -> list:
    return [Path(__file__).parent / "step.py", work]
