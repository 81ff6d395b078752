"""`noise_pair` against `torch.randn` and the two formulas, eager and compiled."""

import pytest
import torch

from pgdpo_kernels import noise_pair

from ..conftest import run
from ..gpu.driver import driver
from ..gpu.harness import Case, compiled, forward
from .shapes import SHAPES


def fused(latents, level, ids):
    return noise_pair(latents, level, seed=1, pair_ids=ids, draw=ids, prediction="flow")


def eager(latents, level, ids):
    """Noise of the library's generator: not reproducible across devices and batches, and the faster for it."""
    noise = torch.randn(len(ids), *latents.shape[1:], device=latents.device, dtype=latents.dtype)
    noise = torch.cat((noise, noise))
    sigma = torch.cat((level, level)).reshape(-1, *[1] * (latents.dim() - 1)).to(latents.dtype)
    return (1 - sigma) * latents + sigma * noise, noise - latents


def make(shape, dtype):
    def allocate(seed):
        device = driver().name
        generator = torch.Generator(device).manual_seed(seed)
        latents = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        pairs = shape[0] // 2
        return latents, torch.rand(pairs, device=device), torch.arange(pairs, device=device)

    return allocate


def moved(shape, dtype):
    """Read the latents, write noisy latents and target."""
    return 3 * torch.Size(shape).numel() * dtype.itemsize


def cases(shapes: list[tuple] = SHAPES) -> list[Case]:
    return [
        Case(
            op="noise_pair",
            direction="forward",
            shape=shape,
            dtype=dtype,
            moved=moved(shape, dtype),
            launches=1,
            make=make(shape, dtype),
            variants={
                "fused": forward(fused),
                "eager": forward(eager),
                "compile": lambda inputs: forward(compiled(eager))(inputs),
            },
        )
        for shape, dtype in shapes
    ]


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["fused", "eager", "compile"])
def test_noise_pair(benchmark, case, variant):
    run(benchmark, case, variant)
