"""The speed of every op, predicted from its machine code."""

from __future__ import annotations

import os

from ..gpu.driver import VARIABLE


def without_a_gpu() -> None:
    """Before Triton is imported: kernels are compiled, not interpreted, and nothing is asked of a device."""
    os.environ |= {VARIABLE: "stub", "TRITON_DEFAULT_FP_FUSION": "1"}
    os.environ.pop("TRITON_INTERPRET", None)
