"""Each op once, forward and backward, against its eager maths in fp32: whether the kernels launch at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

import pgdpo_kernels as kernels

from .driver import driver

BATCHES = (4, 7)
HEADS = 12
TOKENS, WIDTH = (1, 48) if driver().stub else (33, 1536)  # the interpreter takes 50 ms a row


@dataclass(frozen=True)
class Smoke:
    """One op: `inputs(random, batch)` makes its tensors, `call(*inputs)` returns its outputs as a tuple."""

    inputs: Callable[..., tuple]
    call: Callable[..., tuple]
    backward: bool = True


def hidden(random, batch: int, states: int, vectors: int) -> tuple:
    return (
        *(random(batch, TOKENS, WIDTH) for _ in range(states)),
        *(random(batch, 1, WIDTH) for _ in range(vectors)),
    )


def query_and_key(random, batch: int) -> tuple:
    states = [random(batch, TOKENS, WIDTH) for _ in "qk"]
    weights = [random(WIDTH) for _ in "qk"]
    angles = random(TOKENS, WIDTH // HEADS // 2).float().repeat_interleave(2, -1)
    return (*states, *weights, angles.cos(), angles.sin())


def gated(random, batch: int) -> tuple:
    return random(batch, TOKENS, WIDTH), random(batch, TOKENS, HEADS)


def pairs(random, batch: int) -> tuple:
    target = random(2 * batch, 4, 3, 5, 7)
    reference = target + 0.3 * random(*target.shape)
    return reference + 0.05 * random(*target.shape), target, reference


def errors(pred, target, ref) -> tuple:
    found = kernels.pair_errors(pred, target, ref)
    return found.excess_chosen, found.excess_rejected, found.policy_chosen, found.ref_rejected


def separate_errors(pred, target, ref) -> tuple:
    found = kernels.group_errors(list(pred), list(target), ref, len(pred))
    return found.excess, found.policy, found.ref


def losses(pred, target, ref) -> tuple:
    halves = kernels.diffusion_dpo_loss(pred.chunk(2), target.chunk(2), ref, beta=20.0)
    return kernels.diffusion_dpo_loss(pred, target, ref, beta=20.0).loss, halves.loss


def noise(latents) -> tuple:
    ids = torch.arange(len(latents) // 2, device=latents.device)
    level = torch.linspace(0.1, 0.9, len(ids), device=latents.device)
    return kernels.noise_pair(latents, level, seed=1, pair_ids=ids, draw=3, prediction="flow")


OPS = {
    "norm_modulate": Smoke(
        functools.partial(hidden, states=1, vectors=2), lambda x, a, b: (kernels.norm_modulate(x, a, b),)
    ),
    "gate_residual": Smoke(
        functools.partial(hidden, states=2, vectors=1), lambda x, y, g: (kernels.gate_residual(x, y, g),)
    ),
    "gate_residual_norm_modulate": Smoke(
        functools.partial(hidden, states=2, vectors=3),
        lambda x, y, g, a, b: kernels.gate_residual_norm_modulate(x, y, g, a, b),
    ),
    "qk_norm_rope": Smoke(query_and_key, lambda *x: kernels.qk_norm_rope(*x, num_heads=HEADS)),
    "norm_rope": Smoke(
        query_and_key,
        lambda q, k, weight, _, cos, sin: (
            kernels.norm_rope(q, weight, cos, sin, num_heads=HEADS, rope="halves"),
        ),
    ),
    "gate_heads": Smoke(gated, lambda x, logits: (kernels.gate_heads(x, logits),)),
    "pair_errors": Smoke(pairs, errors),
    "group_errors": Smoke(pairs, separate_errors),
    "diffusion_dpo": Smoke(pairs, losses),
    "noise_pair": Smoke(lambda *sizes: pairs(*sizes)[1:2], noise, backward=False),
}


def check(op: str, batch: int, dtype: torch.dtype) -> dict:
    """Run one op on the device.

    Returns:
        `error` of each output and gradient relative to its largest number, and the `bound` on them.

    Raises:
        AssertionError: it is off, or differs between two runs.
    """
    smoke = OPS[op]
    generator = torch.Generator(driver().name).manual_seed(batch)
    random = functools.partial(torch.randn, device=driver().name, generator=generator)
    inputs = smoke.inputs(random, batch)
    inputs = tuple(x.to(dtype) for x in inputs)
    with kernels.set_backend("eager"):
        truth = outcome(smoke, tuple(x.float() for x in inputs))
    with kernels.set_backend("triton"):
        first, second = outcome(smoke, inputs), outcome(smoke, inputs)
    bound = 1e-4 if dtype == torch.float32 else torch.finfo(dtype).eps
    found = [
        ((ours.float() - theirs).abs().max() / theirs.abs().max()).item()
        for ours, theirs in zip(first, truth, strict=True)
    ]
    off = [f"number {i} is off by {error:.1e}" for i, error in enumerate(found) if not error <= bound]
    same = all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert not off and same, "; ".join([*off, *([] if same else ["two runs differ"])])
    return {"error": found, "bound": bound}


def outcome(smoke: Smoke, inputs: tuple) -> list[torch.Tensor]:
    """The outputs, and the gradient of their sum of squares by the first input."""
    inputs = tuple(x.clone().requires_grad_(smoke.backward and i == 0) for i, x in enumerate(inputs))
    outputs = list(smoke.call(*inputs))
    if smoke.backward:
        total = sum(y.float().square().sum() for y in outputs)
        outputs += torch.autograd.grad(total, inputs[0])
    return [y.detach() for y in outputs]
