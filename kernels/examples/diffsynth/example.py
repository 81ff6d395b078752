"""DiffSynth-Studio's script for Wan: a tiny model of its own class, trained on latents that it cached."""

from pathlib import Path

TRAINER = "DiffSynth-Studio, wanvideo train.py"
PACKAGES = ("accelerate", "peft", "transformers", "modelscope", "pandas", "imageio", "torchvision", "einops")
DTYPE = "bfloat16"  # the script's own
SCOPE = "whole script"
CHECKOUT = (
    "DIFFSYNTH_CHECKOUT",
    "fed7b18fac2ed4cb802796eec91970e7659bccde",
    ("diffsynth", "examples/wanvideo/model_training"),
)


def command(source: Path, work: Path) -> list:
    record, launch = Path(__file__).parent.parent / "record.py", Path(__file__).parent / "launch.py"
    return [record, launch, source / "examples/wanvideo/model_training/train.py", work]
