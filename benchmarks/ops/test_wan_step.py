"""One block of Wan-1.3B with LoRA, forward and backward: patched, eager, compiled."""

from __future__ import annotations

import functools

import pytest
import torch

from pgdpo_kernels import apply_to

from ..conftest import run
from ..gpu.driver import driver
from ..gpu.harness import Case

WAN = {"heads": 12, "head": 128, "ffn": 8960, "text": 4096, "words": 512, "latents": (6, 60, 104)}
TINY = {"heads": 2, "head": 16, "ffn": 48, "text": 16, "words": 3, "latents": (2, 4, 4)}


@functools.cache
def model(variant: str, tiny: bool):
    """Random weights drawn on the device, equal in every variant; LoRA as trainers put it on the attention."""
    from diffusers import WanTransformer3DModel
    from peft import LoraConfig

    size = TINY if tiny else WAN
    torch.manual_seed(0)
    with torch.device(driver().name):
        wan = WanTransformer3DModel(
            num_attention_heads=size["heads"],
            attention_head_dim=size["head"],
            ffn_dim=size["ffn"],
            text_dim=size["text"],
            num_layers=1,
        )
    wan.to(torch.bfloat16).requires_grad_(False)
    wan.add_adapter(LoraConfig(r=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    if variant == "fused":
        apply_to(wan, strict=True)
    elif variant == "compile":
        for block in wan.blocks:
            block.compile(fullgraph=True, backend=driver().compile_backend)
    return wan


def make(tiny: bool):
    size = TINY if tiny else WAN

    def allocate(seed: int) -> tuple:
        device = driver().name
        generator = torch.Generator(device).manual_seed(seed)
        random = functools.partial(torch.randn, dtype=torch.bfloat16, device=device, generator=generator)
        text = random(1, size["words"], size["text"])
        return random(1, 16, *size["latents"]), torch.tensor([500.0], device=device), text

    return allocate


def step(variant: str, tiny: bool):
    def prepare(inputs):
        wan = model(variant, tiny)

        def call():
            wan(*inputs, return_dict=False)[0].float().square().mean().backward()

        return call

    return prepare


def cases(tiny: bool = False) -> list[Case]:
    size = TINY if tiny else WAN
    frames, height, width = size["latents"]
    return [
        Case(
            op="wan_1.3b_block",
            direction="forward + backward",
            shape=(1, frames * height * width // 4, size["heads"] * size["head"]),
            dtype=torch.bfloat16,
            moved=None,  # attention and matrix products are not bytes: a block has no bandwidth
            launches=1,
            make=make(tiny),
            variants={variant: step(variant, tiny) for variant in ("fused", "eager", "compile")},
        )
    ]


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("variant", ["fused", "eager", "compile"])
def test_wan_step(benchmark, case, variant):
    pytest.importorskip("diffusers")
    run(benchmark, case, variant)
