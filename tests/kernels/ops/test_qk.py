"""`qk_norm_rope` against float64, forward and backward, in the forms of all four model families."""

import op_oracle as oracle
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from op_oracle import DEVICE, assert_no_worse, doubled, eps_of, results

from pgdpo_kernels import qk_norm_rope, set_backend

TABLES = ["none", "shared", "shared 4d", "half", "full width", "half of full width", "batch"]
cases = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "tokens": st.sampled_from([1, 3, 5]),
        "heads": st.sampled_from([1, 2, 3, 5, 6, 7]),
        "head": st.sampled_from([2, 6, 8, 10, 12, 16, 24, 40]),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        "norm": st.sampled_from(["rms_full", "rms_head", "layer_head", "none"]),
        "rope": st.sampled_from(["neighbours", "halves"]),
        "table": st.sampled_from(TABLES),
        "text": st.sampled_from([(0, 0), (2, 0), (0, 1), (1, 1)]),  # tokens before and after those turned
        "affine": st.sampled_from(["none", "weight", "bias"]),
        "fused": st.booleans(),
        "trained": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)
EVERY = {"batch": 2, "tokens": 3, "heads": 3, "head": 8, "dtype": torch.bfloat16, "table": "shared"}
EVERY |= {"rope": "neighbours"}
EVERY |= {"text": (1, 1), "affine": "bias", "fused": True, "trained": True, "seed": 1}
PADDED = EVERY | {"head": 12, "dtype": torch.float32}


def both_of_a_pair(table, rope):
    return table.repeat_interleave(2, -1) if rope == "neighbours" else torch.cat([table, table], -1)


def prepare(case):
    """Inputs of the op, its options, and the angles that its tables hold."""
    generator = torch.Generator().manual_seed(case["seed"])
    batch, heads, head = case["batch"], case["heads"], case["head"]
    before, after = case["text"]
    turned = case["tokens"]
    tokens, width = before + turned + after, heads * head
    qkv = torch.randn(batch, tokens, 3, width, generator=generator).to(DEVICE, case["dtype"])
    q, k = qkv[:, :, 0], qkv[:, :, 1]
    q, k = ((x if case["fused"] else x.contiguous()).detach().requires_grad_() for x in (q, k))
    size = width if case["norm"] == "rms_full" else head
    count = {"none": 0, "weight": 2, "bias": 4}[case["affine"] if case["norm"] != "none" else "none"]
    vectors = [
        (1 + 0.3 * torch.randn(size, generator=generator)).to(DEVICE).requires_grad_(case["trained"])
        if index < count
        else None
        for index in range(4)
    ]
    table = case["table"]
    shape = (batch if table in ("batch", "full width") else 1, turned)
    shape += (heads if "full width" in table else 1, head // 2)
    angles = (6 * torch.rand(shape, generator=generator)).to(DEVICE)
    tables = [f(angles) for f in (torch.cos, torch.sin)]
    if "half" not in table:
        tables = [both_of_a_pair(x, case["rope"]) for x in tables]
    if table == "shared":
        tables = [t[0, :, 0] for t in tables]
    elif table in ("batch", "full width"):
        tables = [t.flatten(2) for t in tables]
    if table == "none":
        angles, tables = None, [None, None]
    options = {"num_heads": heads, "norm": case["norm"], "rope": case["rope"]}
    options |= {"rope_start": before, "rope_len": turned}
    options["eps"] = case.get("eps", eps_of(head))
    return (q, k, *vectors), tables, options, angles


def compare(case):
    inputs, tables, options, angles = prepare(case)

    def function(q, k, q_weight, k_weight, q_bias, k_bias):
        return qk_norm_rope(q, k, q_weight, k_weight, *tables, q_bias=q_bias, k_bias=k_bias, **options)

    def exact(*doubles):
        return oracle.qk_norm_rope(*doubles, None if angles is None else angles.double(), **options)

    with set_backend("triton"):
        fused = results(function, inputs)
    with set_backend("eager"):
        eager = results(function, inputs)
    doubles = tuple(doubled(x) for x in inputs)
    for double, given_ in zip(doubles, inputs, strict=True):
        if double is not None:
            double.requires_grad_(given_.requires_grad)
    assert_no_worse(fused, eager, results(exact, doubles))


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning:triton.runtime.interpreter"
)  # 0 / 0 where there is no head
@given(case=cases)
@example(case=EVERY | {"norm": "rms_full"})
@example(case=EVERY | {"norm": "layer_head"})
@example(case=PADDED | {"norm": "layer_head", "dtype": torch.bfloat16})
@example(case=PADDED | {"norm": "rms_full", "head": 40, "table": "half of full width"})
@example(case=PADDED | {"norm": "none", "head": 6, "table": "full width", "affine": "none"})
@example(
    case=PADDED | {"norm": "rms_head", "heads": 7, "table": "half", "eps": 0.0}
)  # of eight, one has no norm
@example(case=EVERY | {"rope": "halves", "norm": "rms_full", "table": "half of full width", "heads": 4})
@example(case=EVERY | {"rope": "halves", "norm": "layer_head", "heads": 5})
@example(case=PADDED | {"rope": "halves", "norm": "rms_full", "head": 40, "table": "full width"})
@example(case=PADDED | {"rope": "halves", "norm": "rms_head", "heads": 7, "table": "half", "eps": 0.0})
@settings(max_examples=6, deadline=None, derandomize=True)
def test_qk_norm_rope(case):
    compare(case)
