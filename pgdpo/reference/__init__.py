"""Ways to hold the reference, behind one protocol: adapter off, frozen copy, cached errors, moving, none."""

from pgdpo.reference.cached import CachedErrors, broadcast_mask, frame_sums, mean_errors
from pgdpo.reference.live import Live, adapter_off
from pgdpo.reference.protocol import Comparison, Forward, Reference

__all__ = [
    "CachedErrors",
    "Comparison",
    "Forward",
    "Live",
    "Reference",
    "adapter_off",
    "broadcast_mask",
    "frame_sums",
    "mean_errors",
]
