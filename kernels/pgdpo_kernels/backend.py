"""Which implementation an op takes: Triton kernels or eager PyTorch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

BACKENDS = ("auto", "triton", "eager")
VARIABLE = "PGDPO_KERNELS_BACKEND"

_forced: str | None = None
_heard: list | None = None  # of `heard`


class set_backend:
    """Choose the backend of every op: `auto`, `triton` or `eager`. Also a context manager.

    `auto` takes Triton for CUDA and HIP tensors, and for CPU tensors when TRITON_INTERPRET=1; `triton`
    raises with the reason where it cannot run. Without a call, the environment variable
    PGDPO_KERNELS_BACKEND decides, and without that, `auto`.
    """

    def __init__(self, name: str):
        global _forced
        self._previous = _forced
        _forced = _checked(name, "set_backend")

    def __enter__(self) -> set_backend:
        return self

    def __exit__(self, *exc_info: object) -> None:
        global _forced
        _forced = self._previous


def get_backend() -> str:
    """The backend asked for: `auto`, `triton` or `eager`."""
    return _forced if _forced is not None else _checked(os.environ.get(VARIABLE, "auto"), VARIABLE)


def forced() -> bool:
    """Whether `set_backend` decides, and not the environment."""
    return _forced is not None


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, and so on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def takes_triton(op: str, tensor: torch.Tensor, obstacle: str | None = None) -> bool:
    """Decide once for one call of `op`.

    `obstacle` says why the kernel can't take these arguments (their dtype, layout or size), None if it can.

    Raises:
        RuntimeError: the backend `triton` was asked for and can't run here.
    """
    backend = get_backend()
    if obstacle is None and not tensor.is_cuda and not (tensor.is_cpu and interpreting()):
        obstacle = (
            f"its tensors are on {tensor.device}: Triton needs CUDA or HIP tensors, or TRITON_INTERPRET=1"
        )
    if _heard is not None:
        _heard.append((op, backend, tensor.device, obstacle))
    elif obstacle is not None and backend == "triton":
        raise RuntimeError(f"{op}: backend 'triton' was asked for, but {obstacle}")
    return obstacle is None and backend != "eager"


def takes_eager(op: str, tensor: torch.Tensor, why: str) -> None:
    """Tell `heard` of a part of a call that has no kernel, whatever was asked for."""
    if _heard is not None:
        _heard.append((op, "auto", tensor.device, why))


@contextlib.contextmanager
def heard() -> Iterator[list[tuple[str, str, torch.device, str | None]]]:
    """Every decision within, as (op, the backend asked for, device, what stands against Triton); none raises."""
    global _heard
    before, _heard = _heard, []
    try:
        yield _heard
    finally:
        _heard = before


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name
