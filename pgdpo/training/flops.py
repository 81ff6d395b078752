"""Model FLOPs of a step, counted on meta tensors, and the share of the device's peak that they make (MFU)."""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import attention_backend
from torch.utils.flop_counter import FlopCounterMode

from pgdpo.models.family import Family

# Dense bf16 FLOP/s by the vendors' data sheets; the key is part of the device's name.
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "MI300X": 1307e12,
}


def forward_flops(family: Family, latent_shape: tuple[int, ...]) -> int:
    """FLOPs of one forward of one sample; `latent_shape` is (C, F, H, W). Nothing is allocated."""
    return sum(forward_flops_by_op(family, latent_shape).values())


def forward_flops_by_op(family: Family, latent_shape: tuple[int, ...]) -> dict[str, int]:
    """The same by aten operator. Attention is two batched products (`bmm`) on the meta device, and nothing else is."""
    config = family.architecture()
    # diffusers makes the backend that was chosen for one model that of all to come.
    with torch.device("meta"), attention_backend("native"), FlopCounterMode(display=False) as counter:
        transformer = family.from_architecture(config)
        family.predict(
            transformer,
            torch.empty(1, *latent_shape),
            torch.empty(1),
            family.example_conditioning(1, latent_shape),
        )
    return {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}


def pair_flops(forward: int, *, adapter: bool, reference: bool) -> int:
    """FLOPs that one pair needs: two samples, forward and backward (which skips frozen weights' gradients),
    and the reference's forward. Recomputed activations do not count (PaLM, arXiv 2204.02311, appendix B)."""
    return 2 * forward * (1 + (1 if adapter else 2) + int(reference))


def utilisation(flops_per_second: float, device: torch.device, ranks: int) -> float | None:
    """Share of the peak of `ranks` devices; None where the peak is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    return flops_per_second / (peak * ranks) if peak else None
