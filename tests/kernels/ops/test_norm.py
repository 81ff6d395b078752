"""`norm_modulate`, `gate_residual` and `gate_residual_norm_modulate` against float64, forward and backward."""

import op_oracle as oracle
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_oracle import DEVICE, assert_no_worse, doubled, results

from pgdpo_kernels import gate_residual, gate_residual_norm_modulate, norm_modulate, set_backend

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
    norm = case["norm"]

    def function(x, scale, shift, weight, bias):
        return norm_modulate(x, scale, shift, weight=weight, bias=bias, norm=norm, eps=1e-5)

    def exact(x, scale, shift, weight, bias):
        return oracle.norm_modulate(x, scale, shift, weight, bias, norm, 1e-5)

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
    norm = case["norm"]

    def function(x, branch, gate, scale, shift, weight, bias):
        return gate_residual_norm_modulate(x, branch, gate, scale, shift, weight=weight, bias=bias, norm=norm)

    def exact(x, branch, gate, scale, shift, weight, bias):
        hidden = oracle.gate_residual(x, branch, gate)
        stored = hidden + (hidden.to(case["dtype"]).double() - hidden).detach()
        return hidden, oracle.norm_modulate(stored, scale, shift, weight, bias, norm)

    compare(function, exact, (x, branch, gate if gated else None, scale, shift, weight, bias))
