"""`norm_modulate`, `gate_residual` and `gate_residual_norm_modulate` against float64, forward and backward."""

import math

import op_oracle as oracle
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_oracle import DEVICE, assert_no_worse, doubled, eps_of, results

from pgdpo_kernels import gate_residual, gate_residual_norm_modulate, norm_modulate, qk_norm_rope, set_backend
from pgdpo_kernels.heads import qk_norm_rope as qk_module
from pgdpo_kernels.hidden import gate_residual as gate_module
from pgdpo_kernels.hidden import gate_residual_norm_modulate as norm_module
from pgdpo_kernels.hidden import rows

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
FORMS = ["none", "sample", "token", "frame", "strided", "pair", "token pair"]


def hidden(batch, tokens, width, dtype, generator, strided=False):
    x = torch.randn(batch, tokens + 3 * strided, width, generator=generator).to(DEVICE, dtype)
    return x[:, 3 * strided :].detach().requires_grad_()


def modulation(form, batch, tokens, width, generator):
    """Strided forms are slices of one embedding, as `chunk(6)` gives them."""

    def tensor(*shape):
        return (0.5 * torch.randn(shape, generator=generator)).to(DEVICE)

    if form == "none":
        return None
    if form == "sample":
        return tensor(batch, width).requires_grad_()
    if form == "token":
        return tensor(batch, tokens, width).requires_grad_()
    if form == "frame":
        return tensor(batch, 2 if tokens % 2 == 0 else 1, width).requires_grad_()
    if form == "strided":
        return tensor(batch, 6, width).chunk(6, dim=1)[2].detach().requires_grad_()
    rows = tokens if form == "token pair" else 1
    embedding = tensor(batch, rows, 6, width).unbind(2)[1].detach()
    return tensor(1, 1, width).requires_grad_(), embedding.to(torch.bfloat16).requires_grad_()


cases = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "tokens": st.sampled_from([1, 6, 7]),
        "width": st.sampled_from([2, 24, 40, 48, 64, 57]),
        "dtype": DTYPES,
        "gate": st.sampled_from(["sample", "strided", "pair"]),
        "forms": st.sampled_from(
            [
                (a, b)
                for a in FORMS
                for b in FORMS
                if not ({"token", "token pair"} & {a, b} and "frame" in (a, b))
            ]
        ),
        "affine": st.booleans(),
        "norm": st.sampled_from(["layer", "rms"]),
        "strided": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)
EVERY = {"batch": 2, "tokens": 6, "width": 40, "dtype": torch.bfloat16, "gate": "pair", "affine": True}
EVERY |= {"forms": ("pair", "strided"), "norm": "layer", "strided": True, "seed": 1}


def prepare(case):
    generator = torch.Generator().manual_seed(case["seed"])
    size = (case["batch"], case["tokens"], case["width"])
    x, branch = (hidden(*size, case["dtype"], generator, case["strided"]) for _ in range(2))
    gate, scale, shift = (modulation(form, *size, generator) for form in (case["gate"], *case["forms"]))
    weight, bias = (
        torch.randn(case["width"], generator=generator).to(DEVICE).requires_grad_()
        if case["affine"]
        else None
        for _ in range(2)
    )
    return x, branch, gate, scale, shift, weight, bias


def compare(function, exact, inputs):
    with set_backend("triton"):
        fused = results(function, inputs)
    with set_backend("eager"):
        eager = results(function, inputs)
    assert_no_worse(fused, eager, results(exact, doubled(tuple(inputs))))


@given(case=cases)
@example(case=EVERY)
@settings(max_examples=6, deadline=None, derandomize=True)
def test_norm_modulate(case):
    x, _, _, scale, shift, weight, bias = prepare(case)
    norm, eps = case["norm"], eps_of(case["width"])

    def function(x, scale, shift, weight, bias):
        return norm_modulate(x, scale, shift, weight=weight, bias=bias, norm=norm, eps=eps)

    def exact(x, scale, shift, weight, bias):
        return oracle.norm_modulate(x, scale, shift, weight, bias, norm, eps)

    compare(function, exact, (x, scale, shift, weight, bias))


@given(case=cases)
@example(case=EVERY)
@example(case=EVERY | {"batch": 1, "tokens": 70})  # more than one part to sum
@settings(max_examples=5, deadline=None, derandomize=True)
def test_gate_residual(case):
    x, branch, gate, *_ = prepare(case)
    compare(gate_residual, oracle.gate_residual, (x, branch, gate))


@given(case=cases, gated=st.booleans())
@example(case=EVERY, gated=True)
@settings(max_examples=6, deadline=None, derandomize=True)
def test_gate_residual_norm_modulate(case, gated):
    x, branch, gate, scale, shift, weight, bias = prepare(case)
    norm, eps = case["norm"], eps_of(case["width"])

    def function(x, branch, gate, scale, shift, weight, bias):
        return gate_residual_norm_modulate(
            x, branch, gate, scale, shift, weight=weight, bias=bias, norm=norm, eps=eps
        )

    def exact(x, branch, gate, scale, shift, weight, bias):
        hidden = oracle.gate_residual(x, branch, gate)
        stored = hidden + (hidden.to(case["dtype"]).double() - hidden).detach()
        return hidden, oracle.norm_modulate(stored, scale, shift, weight, bias, norm, eps)

    compare(function, exact, (x, branch, gate if gated else None, scale, shift, weight, bias))


def test_forward_and_backward_have_one_rstd():
    """A row's 1 or 0 shows it: y where x is 1, and, of a gradient that no other element has, dx where x is 0.

    Multiples of 1/8 are summed without a rounding: what is left are those of the mean, the root and the reciprocal.
    """
    generator = torch.Generator().manual_seed(0)
    for width in [2, 3, 5120, 8192, *torch.randint(4, 8192, (12,), generator=generator).tolist()]:
        x = torch.randint(-16, 17, (1, 1, width), generator=generator) / 8
        x[0, 0, :2] = torch.tensor([1.0, 0.0])
        x, dy = x.to(DEVICE).requires_grad_(), torch.zeros(1, 1, width, device=DEVICE)
        dy[0, 0, 1] = 1
        exact = x.detach().double().square().mean().add(1e-6).rsqrt().item()
        with set_backend("triton"):
            outputs = [norm_modulate(x, norm="rms")]
            if width % 2 == 0:
                outputs += qk_norm_rope(x, x, num_heads=1, norm="rms_full")[:1]
        for y in outputs:
            (dx,) = torch.autograd.grad(y, x, dy)
            assert y[0, 0, 0] == dx[0, 0, 1], width
            assert abs(y[0, 0, 0].item() / exact - 1) <= 1.5 * 2**-23, width


@pytest.mark.parametrize("trained", ["gate", "norm", "gate and norm", "weight", "bias", "weight and bias"])
def test_what_is_summed_was_written(trained, monkeypatch):
    """New memory is full of NaN, as it may be: of rows in two parts only those sums are taken that a kernel wrote."""
    fresh, summed = torch.Tensor.new_empty, []

    def poisoned(*arguments, **options):
        return fresh(*arguments, **options).fill_(math.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    for module in (gate_module, norm_module, qk_module):
        monkeypatch.setattr(
            module, "sum_parts", lambda partials: summed.append(partials) or rows.sum_parts(partials)
        )
    monkeypatch.setattr(rows, "LAUNCHES", dict.fromkeys(rows.LAUNCHES, ((rows.MAX_WIDTH, 32, 2),)))
    x, branch = torch.randn(2, 1, 3, 12, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    vectors = torch.rand(4, 12, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gate, scale, weight, bias = (
        vector.requires_grad_(name in trained)
        for name, vector in zip(("gate", "norm", "weight", "bias"), vectors.clone(), strict=True)
    )
    with set_backend("triton"):
        if {"gate", "norm"} & set(trained.split()):
            outputs = [*gate_residual_norm_modulate(x, branch, gate[None], scale[None])]
            outputs += [gate_residual(x, branch, gate[None])] if "gate" in trained else []
        else:
            outputs = [
                *qk_norm_rope(x, branch, weight, weight, q_bias=bias, k_bias=bias, num_heads=1),
                *qk_norm_rope(
                    x, branch, weight, weight, q_bias=bias, k_bias=bias, num_heads=1, norm="layer_head"
                ),
            ]
        wanted = [v for v in (gate, scale, weight, bias) if v.requires_grad]
        gradients = torch.autograd.grad([y.square().sum() for y in outputs], wanted)
    assert summed
    assert all(partials.isfinite().all() for partials in summed)
    assert all(gradient.isfinite().all() for gradient in gradients)
