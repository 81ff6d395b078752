"""SimpleTuner's Flow-DPO of Wan 2.1: its model class, its configuration and its trainer's loss, step by step."""

from pathlib import Path

TRAINER = "SimpleTuner, flow_dpo"
PACKAGES = ("diffusers", "peft", "accelerate", "transformers", "datasets", "torchvision")
DTYPE = "float32"
SCOPE = "training step"
CHECKOUT = ("SIMPLETUNER_CHECKOUT", "bc8e6ab7738ce457a2ed8eb2d26cadd91c6442cb", ("simpletuner",))


def command(source: Path, work: Path) -> list:
    return [Path(__file__).parent / "step.py", work]
