"""SimpleTuner's Flow-DPO on a tiny Wan 2.1: its model class makes batch and predictions, its distiller the loss."""

from __future__ import annotations

from pathlib import Path

TRAINER = "SimpleTuner, flow_dpo"
PACKAGES = ("diffusers", "accelerate", "datasets", "peft", "torchvision", "transformers")
CHECKOUT = ("SIMPLETUNER_CHECKOUT", "bc8e6ab7738ce457a2ed8eb2d26cadd91c6442cb", ("simpletuner",))
DTYPE = "float32"
SIZE = 16 * 2 * 4 * 4  # of a tiny sample, over which the loss sums
GAIN = SIZE / 2
SCOPE = "training step"


def command(source: Path, work: Path) -> list:
    return [Path(__file__).with_name("step.py"), work]


def findings() -> dict[str, float]:
    """Sums in place of means, on one latent of Wan at 480p and 81 frames a side: beta in our terms, and its rounding.

    The policy is off its reference by LoRA's first steps; beta is 1, the most that the automatic one takes.
    """
    import torch

    from pgdpo_kernels import diffusion_dpo_loss

    draw = torch.Generator().manual_seed(0)
    target, reference, away = torch.randn(3, 2, 16, 21, 60, 104, generator=draw)
    policy, size = reference + 1e-4 * away, target[0].numel()

    def logit(dtype: torch.dtype) -> torch.Tensor:
        worse = [(x.to(dtype) - target.to(dtype)).square().flatten(1).sum(1) for x in (policy, reference)]
        chosen, rejected = worse[1] - worse[0]
        return 0.5 * (chosen - rejected)

    ours = diffusion_dpo_loss(policy, target, reference, beta=size, objective="dpo").logits[0]
    exact = logit(torch.float64)
    return {
        "beta in our terms, automatic, least": 1e-3 * size,
        "beta in our terms, automatic, most": float(size),
        "logit": exact.item(),
        "logit, the trainer's error": (logit(torch.float32) - exact).abs().item(),
        "logit, our error": (ours - exact).abs().item(),
    }
