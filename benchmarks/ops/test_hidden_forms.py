"""The ops on hidden states in other forms: modulation trained, unsummed or per token, other norms, LTX-2's heads.

Liger-Kernel (0.8) has the norms alone and with a modulation, but no gate, and turns q and k by halves, unnormed: it is
timed on norms, where it is installed.
"""

from __future__ import annotations

import functools

import pytest
import torch

from ..conftest import run
from ..gpu.driver import driver
from ..gpu.harness import Case
from .test_hidden_ops import case, gate, gate_norm, modulate

WAN_14B = (75600, 5120)  # tokens and hidden size, 81 frames at 720p
WAN_22_5B = (27280, 3072)  # a timestep per token, 121 frames at 704p
LTX_2B = (9680, 2048)
LTX_13B = (9680, 4096)
LTX_2 = (14080, 4096)  # the picture, 121 frames at 704p
LTX_2_CROSS = (14080, 2048)  # its queries to the sound
HEADS = 32

# Op, function, hidden states; tensors of their size that forward and backward move; modulations that each reads; and
# how many tensors more backward reads where the modulations are trained.
OPS = (
    ("gate_residual_norm_modulate", gate_norm, 2, {"forward": (4, 3), "backward": (5, 2)}, 1),
    ("norm_modulate", modulate, 1, {"forward": (2, 2), "backward": (3, 1)}, 0),
    ("gate_residual", gate, 2, {"forward": (3, 1), "backward": (2, 1)}, 1),
)


def affine(ops, x, weight, bias):
    return (ops.norm_modulate(x, weight=weight, bias=bias),)


def rms(ops, x, scale, shift):
    return (ops.norm_modulate(x, scale, shift, norm="rms"),)


def liger_affine(x, weight, bias):
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return (LigerLayerNormFunction.apply(x, weight, bias, 1e-6),)


def liger_rms(x, scale, shift):
    """In fp32 inside, as ours; not in place, as a benchmark repeats its backward pass."""
    from liger_kernel.ops.modulated_rms_norm import LigerModulatedRMSNormFunction

    return (LigerModulatedRMSNormFunction.apply(x, None, scale[0], shift[0], 1e-6, 0.0, "gemma", False),)


def make(sizes, states, form, modulations=2):
    """`states` tensors [1, N, D] that want gradients, and what `form` gives beside them."""
    tokens, width = sizes

    def allocate(seed):
        device = driver().name
        generator = torch.Generator(device).manual_seed(seed)
        random = functools.partial(torch.randn, device=device, generator=generator)
        rows = [random(1, tokens, width, dtype=torch.bfloat16).requires_grad_() for _ in range(states)]
        if form == "affine":
            return (*rows, *(random(width, dtype=torch.bfloat16) for _ in "wb"))
        if form in ("trained", "rms"):  # views of one parameter, as Wan has them
            return (
                *rows,
                *random(1, 6, width).requires_grad_(form == "trained").chunk(6, dim=1)[:modulations],
            )
        tables = random(6, width).unbind(0)
        if form == "per token":
            embeddings = random(1, tokens, 6, width, dtype=torch.bfloat16).unbind(2)
        else:
            embeddings = random(1, 6, width).unbind(1)
        return (*rows, *list(zip(tables, embeddings, strict=True))[:modulations])

    return allocate


def modulated(form: str, sizes: tuple[int, int], directions: tuple[str, ...]) -> list[Case]:
    out = []
    for op, function, states, moved, more in OPS:
        for direction in directions:
            tensors, read = moved[direction]
            tensors += more if form == "trained" else 0
            tensors += read if form == "per token" else 0  # in bf16, as large as the hidden states
            allocate = make(sizes, states, form, moved["forward"][1])
            launches = 2 if form == "trained" else 1  # the second adds up the parts
            out.append(case(op, function, sizes, direction, tensors, allocate, form=form, launches=launches))
    return out


def normed(form: str, function, liger, sizes: tuple[int, int]) -> list[Case]:
    return [
        case(
            "norm_modulate", function, sizes, direction, tensors, make(sizes, 1, form), form=form, liger=liger
        )
        for direction, tensors in (("forward", 2), ("backward", 3))
    ]


def halves(ops, q, k, q_weight, k_weight, cos, sin):
    return ops.qk_norm_rope(q, k, q_weight, k_weight, cos, sin, num_heads=cos.shape[2], rope="halves")


def crossed(ops, x, weight, cos, sin):
    return (ops.norm_rope(x, weight, cos, sin, num_heads=cos.shape[2], rope="halves"),)


def gated(ops, x, logits):
    return (ops.gate_heads(x, logits),)


def make_heads(sizes, states, heads):
    """`states` tensors [1, N, D] that want gradients, a weight for each, and each head's own cos and sin."""
    tokens, width = sizes

    def allocate(seed):
        device = driver().name
        generator = torch.Generator(device).manual_seed(seed)
        random = functools.partial(torch.randn, device=device, generator=generator)
        rows = [random(1, tokens, width, dtype=torch.bfloat16).requires_grad_() for _ in range(states)]
        weights = [random(width, dtype=torch.bfloat16) for _ in range(states)]
        angles = random(1, tokens, heads, width // heads // 2)
        return (*rows, *weights, angles.cos(), angles.sin())

    return allocate


def make_gated(sizes, heads):
    """A tensor [1, N, D] and logits [1, N, H], which both want gradients."""
    tokens, width = sizes

    def allocate(seed):
        device = driver().name
        generator = torch.Generator(device).manual_seed(seed)
        random = functools.partial(torch.randn, 1, tokens, device=device, generator=generator)
        return tuple(random(n, dtype=torch.bfloat16).requires_grad_() for n in (width, heads))

    return allocate


def of_heads(picture: tuple[int, int], cross: tuple[int, int], heads: int) -> list[Case]:
    """As LTX-2's attention has them; a table has half as many numbers as its tensor, of four bytes, twice."""
    tables, cross_tables = (2 * (4 * tokens * width,) for tokens, width in (picture, cross))
    logits = 2 * picture[0] * heads
    out = []
    for op, function, sizes, allocate, moved, extra in (
        ("qk_norm_rope", halves, picture, make_heads(picture, 2, heads), (4, 6), tables),
        ("norm_rope", crossed, cross, make_heads(cross, 1, heads), (2, 3), cross_tables),
        ("gate_heads", gated, picture, make_gated(picture, heads), (2, 3), (logits, 2 * logits)),
    ):
        form = "" if op == "gate_heads" else "halves"
        for direction, tensors, more in zip(("forward", "backward"), moved, extra, strict=True):
            out.append(case(op, function, sizes, direction, tensors, allocate, more, form))
    return out


def cases(tiny: bool = False) -> list[Case]:
    """The most telling first."""
    wan_14b, wan_22, ltx_13b, ltx_2b = [(2, 64)] * 4 if tiny else (WAN_14B, WAN_22_5B, LTX_13B, LTX_2B)
    both = ("forward", "backward")
    return [
        *modulated("per token", wan_22, both),
        *modulated("trained", wan_14b, ("backward",)),
        *normed("affine", affine, liger_affine, wan_14b),
        *normed("rms", rms, liger_rms, ltx_13b),
        *modulated("pair", wan_14b, both),
        *([] if tiny else normed("rms", rms, liger_rms, ltx_2b)),
        *(of_heads((2, 64), (2, 32), 4) if tiny else of_heads(LTX_2, LTX_2_CROSS, HEADS)),
    ]


CASES = cases()


@pytest.mark.parametrize(
    ("case", "variant"),
    [pytest.param(one, name, id=f"{one.name} {name}") for one in CASES for name in one.variants],
)
def test_hidden_forms(benchmark, case, variant):
    run(benchmark, case, variant)
