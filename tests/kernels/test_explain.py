"""`explain` of single ops says what a call then takes, and computes nothing."""

import pytest
import torch
from kernel_inputs import DEVICE

import pgdpo_kernels
from pgdpo_kernels import explain, set_backend
from pgdpo_kernels.backend import heard


def tensors(*shape):
    first, *others = (torch.randn(shape, device=DEVICE) for _ in range(3))
    return first.requires_grad_(), *others


CALLS = {
    "diffusion_dpo_loss": (tensors(4, 3, 2, 2, 2), {"beta": 500.0}),
    "pair_errors": (tensors(4, 3, 2, 2, 2), {"segments": torch.tensor([0, 1])}),
    "group_errors": (
        tuple(list(x.unbind(0)) for x in tensors(3, 4, 2, 2, 2)),
        {"groups": torch.tensor([0, 0, 1])},
    ),
    "norm_modulate": (tensors(2, 3, 8), {}),
    "gate_residual": (tensors(2, 3, 8), {}),
    "gate_heads": (tensors(2, 3, 8)[:2], {}),
    "norm_rope": (tensors(2, 3, 8)[:1], {"num_heads": 2, "norm": "none"}),
    "gate_residual_norm_modulate": (tensors(2, 3, 8), {}),
    "qk_norm_rope": (tensors(2, 3, 8)[:2], {"num_heads": 2, "norm": "none"}),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_says_what_a_call_takes(name, backend):
    op, (args, kwargs) = getattr(pgdpo_kernels, name), CALLS[name]
    told = explain(op, *args, **kwargs)
    with heard() as decisions:
        op(*args, **kwargs)
    assert {choice.op for choice in told} == {decision[0] for decision in decisions}
    assert {choice.backend for choice in told} == {backend}
    assert sum(choice.count for choice in told) == len(decisions)


def test_it_computes_nothing(backend):
    """Of 64 terabytes, by views of one row."""
    huge = torch.empty(8192, device=DEVICE).expand(2, 1 << 30, 8192)
    assert explain(pgdpo_kernels.norm_modulate, huge, huge, huge)[0].backend == backend


def test_why():
    x = torch.randn(1, 1, 8194, device=DEVICE)
    with set_backend("eager"):
        assert explain(pgdpo_kernels.norm_modulate, x)[0].why == "set_backend('eager')"
    with set_backend("triton"):
        (choice,) = explain(pgdpo_kernels.norm_modulate, x)
        assert (choice.backend, choice.why) == ("raises", "D is 8194, beyond 8192")
        with pytest.raises(RuntimeError, match="D is 8194, beyond 8192"):
            pgdpo_kernels.norm_modulate(x)
    x = x[..., :8].to("meta")
    assert "Triton needs CUDA or HIP tensors" in explain(pgdpo_kernels.norm_modulate, x)[0].why


def test_the_environment_is_named(monkeypatch):
    monkeypatch.setenv("PGDPO_KERNELS_BACKEND", "eager")
    told = explain(pgdpo_kernels.norm_modulate, torch.randn(1, 1, 8))
    assert str(told) == "norm_modulate  eager  PGDPO_KERNELS_BACKEND=eager"


def test_a_part_without_a_kernel_is_told(backend):
    args, kwargs = CALLS["diffusion_dpo_loss"]
    told = explain(
        pgdpo_kernels.diffusion_dpo_loss, *args, **kwargs, safeguard_mu=0.5, safeguard_scope="batch"
    )
    found = {choice.op: choice.backend for choice in told}
    assert found["diffusion_dpo_loss"] == "eager" and backend in {choice.backend for choice in told}
    assert "safeguard_scope='batch'" in str(told)


def test_wrong_use_is_told():
    with pytest.raises(TypeError, match="expected a model or an op of pgdpo_kernels, got <built-in"):
        explain(len)
    with pytest.raises(ValueError, match="must be .B, N, D."):
        explain(pgdpo_kernels.norm_modulate, torch.randn(2, 3))
    assert "is left as it is: it is none of diffusers" in str(explain(torch.nn.Linear(2, 2)))
