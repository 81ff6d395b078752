"""`norm_rope` and `gate_heads` against float64, forward and backward; the former beside `qk_norm_rope`."""

import op_oracle as oracle
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_oracle import DEVICE, assert_no_worse, doubled, results

from pgdpo_kernels import gate_heads, norm_rope, qk_norm_rope, set_backend

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def compare(fused, exact, inputs):
    """On Triton, in eager maths, and in float64."""
    with set_backend("triton"):
        ours = results(fused, inputs)
    with set_backend("eager"):
        eager = results(fused, inputs)
    doubles = tuple(doubled(x).requires_grad_(x.requires_grad) for x in inputs)
    assert_no_worse(ours, eager, results(exact, doubles))


@given(
    tokens=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 3, 5]),
    head=st.sampled_from([2, 6, 8, 24]),
    norm=st.sampled_from(["rms_full", "rms_head", "layer_head"]),
    rope=st.sampled_from(["neighbours", "halves"]),
    dtype=DTYPES,
    seed=st.integers(0, 2**31),
)
@example(tokens=3, heads=4, head=8, norm="rms_full", rope="halves", dtype=torch.bfloat16, seed=1)
@example(tokens=2, heads=3, head=6, norm="rms_head", rope="halves", dtype=torch.float32, seed=2)
@settings(max_examples=4, deadline=None, derandomize=True)
def test_norm_rope(tokens, heads, head, norm, rope, dtype, seed):
    """As keys of cross-attention: a table for each head, as LTX-2 lays them out, `[B, H, N, head / 2]`."""
    generator = torch.Generator().manual_seed(seed)
    size = heads * head if norm == "rms_full" else head
    x = torch.randn(2, tokens, 2 * heads * head, generator=generator).to(DEVICE, dtype)[..., : heads * head]
    weight, bias = (torch.randn(2, size, generator=generator) + 1).to(DEVICE).unbind(0)
    inputs = (x.detach().requires_grad_(), weight.detach().requires_grad_(), bias.detach().requires_grad_())
    angles = (6 * torch.rand(2, heads, tokens, head // 2, generator=generator)).to(DEVICE).transpose(1, 2)
    options = {"num_heads": heads, "norm": norm, "rope": rope, "eps": oracle.eps_of(head)}
    compare(
        lambda x, weight, bias: norm_rope(x, weight, angles.cos(), angles.sin(), bias=bias, **options),
        lambda *doubles: oracle.norm_rope(*doubles, angles.double(), **options),
        inputs,
    )


@pytest.mark.parametrize("rope", ["neighbours", "halves"])
def test_norm_rope_has_the_bits_of_queries_and_keys_together(rope):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 3, 24, generator=generator).to(DEVICE, torch.bfloat16)
    weights = torch.randn(2, 24, generator=generator).to(DEVICE)
    angles = torch.rand(3, 4, generator=generator).to(DEVICE)
    leaves = [x.clone().requires_grad_() for x in (q, k, *weights)]
    options = {"num_heads": 3, "rope": rope}
    with set_backend("triton"):
        both = results(lambda *x: qk_norm_rope(*x, angles.cos(), angles.sin(), **options), leaves)

        def each(q, k, *weights):
            pairs = zip((q, k), weights, strict=True)
            return tuple(norm_rope(*pair, angles.cos(), angles.sin(), **options) for pair in pairs)

        alone = results(each, leaves)
    assert all(torch.equal(one, other) for one, other in zip(both, alone, strict=True))


@pytest.mark.parametrize("rope", ["neighbours", "halves"])
def test_both_elements_of_a_pair_may_have_numbers_of_their_own(rope):
    """No rotation then: (x0 cos0 - x1 sin0, x1 cos1 + x0 sin1)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 12, generator=generator).to(DEVICE).requires_grad_()
    cos, sin = torch.randn(2, 3, 6, generator=generator).to(DEVICE)
    places = {"neighbours": [[0, 2, 4], [1, 3, 5]], "halves": [[0, 1, 2], [3, 4, 5]]}[rope]

    def exact(x):
        heads = x.unflatten(2, (2, 6))
        out = torch.empty_like(heads)
        first, second = heads[..., places[0]], heads[..., places[1]]
        table = [[t.double()[:, None, place] for place in places] for t in (cos, sin)]
        out[..., places[0]] = first * table[0][0] - second * table[1][0]
        out[..., places[1]] = second * table[0][1] + first * table[1][1]
        return out.flatten(2)

    compare(lambda x: norm_rope(x, cos=cos, sin=sin, num_heads=2, norm="none", rope=rope), exact, (x,))


@given(
    tokens=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 3, 5, 8]),
    head=st.sampled_from([2, 3, 8, 24]),
    scale=st.sampled_from([1.0, 2.0]),
    dtypes=st.tuples(DTYPES, DTYPES),
    seed=st.integers(0, 2**31),
)
@example(tokens=3, heads=4, head=8, scale=2.0, dtypes=(torch.bfloat16, torch.bfloat16), seed=1)
@example(tokens=2, heads=3, head=6, scale=2.0, dtypes=(torch.bfloat16, torch.float32), seed=2)
@settings(max_examples=4, deadline=None, derandomize=True)
def test_gate_heads(tokens, heads, head, scale, dtypes, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, tokens, 2 * heads * head, generator=generator).to(DEVICE, dtypes[0])
    x = x[..., heads * head :].detach().requires_grad_()
    logits = (3 * torch.randn(2, tokens, heads, generator=generator)).to(DEVICE, dtypes[1]).requires_grad_()
    compare(
        lambda *inputs: gate_heads(*inputs, scale=scale),
        lambda *doubles: oracle.gate_heads(*doubles, scale=scale),
        (x, logits),
    )


def test_a_gate_of_zero_changes_nothing():
    x = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.bfloat16)
    with set_backend("triton"):
        assert torch.equal(gate_heads(x, x.new_zeros(2, 3, 4)), x)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning:triton.runtime.interpreter")
def test_gates_far_out_are_0_and_2():
    """Their slopes are 0, not NaN."""
    x = torch.ones(1, 1, 8, device=DEVICE, requires_grad=True)
    logits = torch.tensor([[[-1e4, 1e4]]], device=DEVICE, requires_grad=True)
    with set_backend("triton"):
        out, by_x, by_logits = results(gate_heads, (x, logits))
    assert out.flatten().tolist() == [0.0] * 4 + [2.0] * 4
    assert by_x[..., :4].eq(0).all() and by_logits.eq(0).all()


def test_wrong_use_says_what_is_wrong():
    x = torch.ones(2, 6, 24, device=DEVICE)
    for call, message in (
        (lambda: norm_rope(x, num_heads=5), "norm_rope: 5 heads do not cut a width of 24"),
        (lambda: norm_rope(x, num_heads=3, rope="thirds"), "rope must be one of .*'thirds'"),
        (lambda: norm_rope(x, x[0, 0], num_heads=3, norm="none"), "weight goes with a norm"),
        (lambda: gate_heads(x, x[:, :, :5]), r"logits must be \[B, N, H\] .* got shape \(2, 6, 5\)"),
        (lambda: gate_heads(x, x[:, :3, :4]), r"logits must be .* got shape \(2, 3, 4\)"),
        (lambda: gate_heads(x, x[:, :, :4], scale=float("nan")), "scale must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    wide = torch.ones(1, 1, 33 * 136, device=DEVICE)
    refused = "33 heads of 136 in halves, held as 64 of 256, are beyond 8192"
    with set_backend("triton"), pytest.raises(RuntimeError, match=refused):
        norm_rope(wide, num_heads=33, rope="halves")
