"""One block and the whole transformer of Wan-1.3B with LoRA, forward and backward: patched, eager, compiled."""

from __future__ import annotations

import functools

import pytest
import torch

from pgdpo_kernels import apply_to

from .conftest import run
from .harness import Case

FRAMES, HEIGHT, WIDTH = 6, 60, 104  # latents: 6 x 30 x 52 = 9,360 tokens
TOKENS, HIDDEN, LAYERS = 9360, 1536, 30


@functools.cache
def model(layers: int, variant: str):
    """Random weights, equal in every variant; LoRA as trainers put it on the attention's projections."""
    from diffusers import WanTransformer3DModel
    from peft import LoraConfig

    torch.manual_seed(0)
    wan = WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=layers
    )
    wan.to("cuda", torch.bfloat16).requires_grad_(False)
    wan.add_adapter(LoraConfig(r=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    if variant == "fused":
        apply_to(wan, strict=True)
    elif variant == "compile":
        wan.compile_repeated_blocks(fullgraph=True)
    return wan


def make(seed: int) -> tuple:
    generator = torch.Generator("cuda").manual_seed(seed)
    random = functools.partial(torch.randn, dtype=torch.bfloat16, device="cuda", generator=generator)
    latents = random(1, 16, FRAMES, HEIGHT, WIDTH)
    return latents, torch.tensor([500.0], device="cuda"), random(1, 512, 4096)


def step(layers: int, variant: str):
    def prepare(inputs):
        wan = model(layers, variant)

        def call():
            loss = wan(*inputs, return_dict=False)[0].float().square().mean()
            loss.backward()

        return call

    return prepare


CASES = [
    Case(
        op=f"wan_1.3b_{name}",
        direction="forward + backward",
        shape=(1, TOKENS, HIDDEN),
        dtype=torch.bfloat16,
        moved=layers * 104 * TOKENS * HIDDEN,  # the element-wise half alone, tests/kernels/ops/block_bytes.py
        launches=1,
        make=make,
        variants={variant: step(layers, variant) for variant in ("fused", "eager", "compile")},
    )
    for name, layers in (("block", 1), ("transformer", LAYERS))
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["fused", "eager", "compile"])
def test_wan_step(benchmark, case, variant):
    run(benchmark, case, variant)
