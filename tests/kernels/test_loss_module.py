"""`DiffusionDPOLoss`: the function with its options said once, as a module that travels."""

import copy
import pickle

import pytest
import torch
from kernel_inputs import make_pairs

from pgdpo_kernels import DiffusionDPOLoss, diffusion_dpo_loss

OPTIONS = {"objective": "pg_dpo", "ars_k": 0.5, "segments": 2, "reduction": "sum", "loss_scale": 0.25}
PAIRS = make_pairs((4, 2, 4, 3, 5))


def value_and_gradient(loss, **options):
    policy = PAIRS[0].clone().requires_grad_()
    result = loss(policy, *PAIRS[1:], **options).loss
    return result.detach(), torch.autograd.grad(result, policy)[0]


def assert_same(one, other):
    assert all(torch.equal(*both) for both in zip(one, other, strict=True))


def test_it_is_the_function(backend):
    module, weight = DiffusionDPOLoss(300.0, **OPTIONS), torch.tensor([0.5, 2.0], device=PAIRS[0].device)
    for beta in (300.0, 20.0):
        module.beta = beta
        found = value_and_gradient(module, weight=weight)
        assert_same(found, value_and_gradient(diffusion_dpo_loss, weight=weight, beta=beta, **OPTIONS))
    assert not list(module.parameters()) and not module.state_dict()
    assert repr(module) == (
        "DiffusionDPOLoss(beta=20.0, objective='pg_dpo', ars_k=0.5, segments=2, reduction='sum', loss_scale=0.25)"
    )


def test_it_travels():
    module = DiffusionDPOLoss(300.0, **OPTIONS)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_same(value_and_gradient(other), value_and_gradient(module))
        other.options["ars_k"] = 2.0
        assert module.options == OPTIONS


def objective(errors):
    return torch.relu(1.0 + errors.excess_chosen - errors.excess_rejected)[:, 0]


@pytest.mark.parametrize(
    "options", [{"beta": 300.0, **OPTIONS}, {"objective": objective}], ids=["named", "own"]
)
def test_it_compiles_whole(backend, options):
    module = DiffusionDPOLoss(**options)

    def halves(policy, target, ref):
        return module(policy.split(2), target.split(2), ref)

    for call in (module, halves):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        for found, want in zip(value_and_gradient(compiled), value_and_gradient(call), strict=True):
            torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, TypeError, "DiffusionDPOLoss: beta must be given"),
        ({"beta": -1.0}, ValueError, "DiffusionDPOLoss: beta must be a finite number above 0"),
        ({"beta": 1.0, "objective": "ppo"}, ValueError, "objective must be one of .*or a callable.*'ppo'"),
        ({"beta": 1.0, "mask": 3}, TypeError, "unknown option mask; options are .*frame_dim.*segments"),
        ({"beta": 1.0, "ipr_form": "x"}, ValueError, "ipr_form must be one of"),
        ({"beta": 1.0, "reduction": "x"}, ValueError, "reduction must be one of"),
        ({"objective": objective, "ars_k": 1.0}, ValueError, "ars_k can't be given beside"),
    ],
)
def test_wrong_options_are_named_at_construction(given, error, message):
    with pytest.raises(error, match=message):
        DiffusionDPOLoss(**given)
