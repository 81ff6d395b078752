"""DiffSynth-Studio's script for Wan: a tiny model of its own class, trained on latents that it cached."""

from __future__ import annotations

from pathlib import Path

TRAINER = "DiffSynth-Studio, wanvideo train.py"
PACKAGES = ("accelerate", "imageio", "librosa", "modelscope", "pandas", "peft", "torchvision", "transformers")
DTYPE = "bfloat16"  # the script's own
SCOPE = "whole script"
CHECKOUT = (
    "DIFFSYNTH_CHECKOUT",
    "fed7b18fac2ed4cb802796eec91970e7659bccde",
    ("diffsynth", "examples/wanvideo/model_training"),
)


def command(source: Path, work: Path) -> list:
    folder = Path(__file__).resolve().parent
    return [
        folder.parent / "record.py",
        folder / "launch.py",
        source / "examples/wanvideo/model_training/train.py",
        work,
    ]


def findings() -> dict[str, int]:
    """Noise levels that the loss can draw: it casts the timestep to bf16, and looks its noise level up by that."""
    import torch

    # FlowMatchScheduler's for Wan: 1000 steps, shifted by 5
    steps = torch.linspace(1, 0, 1001, dtype=torch.float64)[:-1]
    steps = (1000 * 5 * steps / (1 + 4 * steps)).float()
    found = {(steps - step.bfloat16().float()).abs().argmin().item() for step in steps}
    return {"noise levels of the schedule": len(steps), "of which the loss can draw": len(found)}
