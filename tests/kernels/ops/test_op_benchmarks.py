"""The ops' benchmarks compare like with like, at shapes that occur once."""

import torch
from op_oracle import DEVICE

from benchmarks.ops import test_hidden_forms, test_hidden_ops
from pgdpo_kernels import set_backend


def test_variants_compute_the_same():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 4, 32, generator=generator).to(DEVICE) for _ in range(2))
    vectors = [torch.randn(1, 1, 32, generator=generator).to(DEVICE) for _ in range(3)]
    angles = torch.rand(4, 8, generator=generator).repeat_interleave(2, -1).to(DEVICE)
    weights = [vector.flatten() for vector in vectors[:2]]
    tables = [f(angles[None, :, None, ::2].expand(1, 4, 2, 8)).contiguous() for f in (torch.cos, torch.sin)]
    with set_backend("triton"):
        for function, inputs in (
            (test_hidden_ops.modulate, (x, *vectors[:2])),
            (test_hidden_ops.gate, (x, y, vectors[0])),
            (test_hidden_ops.gate_norm, (x, y, *vectors)),
            (test_hidden_forms.halves, (x, y, *weights, *tables)),
            (test_hidden_forms.crossed, (x, weights[0], *tables)),
            (test_hidden_forms.gated, (x, y[..., :4])),
            (test_hidden_ops.rope(2, "rms_full"), (x, y, *weights, angles.cos(), angles.sin())),
        ):
            ours = test_hidden_ops.bound(function, test_hidden_ops.Fused)(*inputs)
            theirs = test_hidden_ops.bound(function, test_hidden_ops.eager)(*inputs)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_case_has_a_name_of_its_own():
    names = [case.name for case in test_hidden_ops.CASES]
    assert len(set(names)) == len(names) == 8 * len(test_hidden_ops.MODELS)
