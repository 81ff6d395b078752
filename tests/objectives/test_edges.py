"""Every objective at the edges: extreme errors, a policy that equals its reference, ties, one pair, many."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from objective_oracle import Errors
from objective_rows import ROWS
from objective_samples import FIELDS, random_errors, random_info, to_pair_info, to_torch

from pgdpo.objectives import PairInfo, build_objective
from pgdpo_kernels import PairErrors, pair_errors

pytestmark = pytest.mark.quick

CASES = [(name, options) for name, (_, cases) in ROWS.items() for options in [{}, *cases]]
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for name, options in CASES]
EXTREMES = (1e-8, 1e-4, 1.0, 1e4)


def data(objective, pairs: int, segments: int, *, labels: float | None = None) -> PairInfo:
    rng = np.random.default_rng(1)
    info = random_info(rng, pairs, segments)
    info["masked"] = random_errors(rng, pairs, segments)
    if labels is not None:
        info["segment_labels"] = np.full((pairs, segments), labels)
    return to_pair_info({key: info[key] for key in objective.needs.pairs}, torch.float32)


def assert_finite(objective, errors: PairErrors, pairs: PairInfo) -> torch.Tensor:
    """Loss, logits and every gradient are finite. Returns the losses."""
    output = objective(errors, pairs)
    leaves = [getattr(errors, field) for field in FIELDS.values()]
    gradients = torch.autograd.grad(output.loss, leaves, allow_unused=True)
    assert output.per_group.isfinite().all()
    assert output.logits.isfinite().all()
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    assert all(value.isfinite().all() for value in output.stats.values())
    return output.per_group.detach()


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_extreme_errors(name, options):
    """All 256 combinations of policy and reference errors from 1e-8 to 1e4, in float32."""
    grid = np.array(list(itertools.product(EXTREMES, repeat=4)))[:, :, None]  # (256, 4, 1)
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = grid.transpose(1, 0, 2)
    values = {"E_pw": policy_chosen, "E_pl": policy_rejected}
    values |= {"e_w": policy_chosen - ref_chosen, "e_l": policy_rejected - ref_rejected}
    values |= {name: np.abs(values[key]) for name, key in (("D_w", "e_w"), ("D_l", "e_l"))}
    objective = build_objective(name, **options)
    errors = to_torch(Errors(values, np.ones((256, 1))), torch.float32)
    assert_finite(objective, errors, data(objective, 256, 1))


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_policy_equal_to_reference(name, options, pairs):
    rng = np.random.default_rng(2)
    values = {key: rng.uniform(0.05, 0.3, (pairs, 2)) for key in ("E_pw", "E_pl")}
    values |= {key: np.zeros((pairs, 2)) for key in ("e_w", "e_l", "D_w", "D_l")}
    objective = build_objective(name, **options)
    errors = to_torch(Errors(values, np.ones((pairs, 2))), torch.float32)
    assert_finite(objective, errors, data(objective, pairs, 2))


@pytest.mark.parametrize("zero", ["E_pw", "E_pl"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_an_error_of_exactly_zero(name, options, zero):
    errors = random_errors(np.random.default_rng(3), 2, 1)
    errors.segments[zero][:] = 0
    objective = build_objective(name, **options)
    assert_finite(objective, to_torch(errors, torch.float32), data(objective, 2, 1))


@pytest.mark.parametrize("pairs", [1, 1000])
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_number_of_pairs(name, options, pairs):
    objective = build_objective(name, **options)
    errors = to_torch(random_errors(np.random.default_rng(4), pairs, 2), torch.float32)
    assert len(assert_finite(objective, errors, data(objective, pairs, 2))) == pairs


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dense_dpo", {}),
        ("dense_dpo", {"form": "mean"}),
        ("pg_dpo", {"segments": "labelled", "ipr_weight": 0.0}),
        ("pg_dpo", {"segments": "labelled", "ipr_weight": 0.0, "reward": "external"}),
    ],
)
def test_all_segments_tied(name, options):
    """A pair without a labelled segment has loss ln 2 and no gradient."""
    objective = build_objective(name, **options)
    errors = to_torch(random_errors(np.random.default_rng(5), 3, 4), torch.float32)
    output = objective(errors, data(objective, 3, 4, labels=0.0))
    output.loss.backward()
    torch.testing.assert_close(output.per_group.detach(), torch.full((3,), math.log(2)))
    assert not errors.excess_chosen.grad.any()
    assert not errors.excess_rejected.grad.any()


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("name", ["dpo", "inpo", "npo", "cdpo", "dpop", "f_dpo", "lpo", "aot", "flex_dpo"])
def test_a_fresh_run_has_margin_zero_and_loss_ln_2(name, segments):
    """Through real predictions: the same bits in policy and reference."""
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.randn(4, 2, 3, 5, generator=generator).bfloat16() for _ in range(2))
    errors = pair_errors(pred.requires_grad_(), target, pred.detach(), segments=segments)
    output = build_objective(name)(errors)
    assert torch.equal(output.per_group.detach(), torch.full((2,), math.log(2)))
    assert not output.logits.any()
    assert not output.stats["margin"].any()


def test_one_bad_pair_stays_alone():
    """Infinity in one pair reaches that pair's loss alone."""
    for name in ("dpo", "pg_dpo", "simpo", "dspo", "linear_dpo"):
        errors = random_errors(np.random.default_rng(6), 3, 1)
        errors.segments["E_pw"][1], errors.segments["e_w"][1] = np.inf, np.inf
        per_group = build_objective(name)(to_torch(errors, torch.float32)).per_group
        assert per_group[[0, 2]].isfinite().all(), name
        assert not per_group[1].isfinite(), name


def test_dspo_is_its_squared_norm():
    """The reduction to errors and drift equals the norm over real predictions, value and gradient."""
    generator = torch.Generator().manual_seed(1)
    shape = (6, 2, 3, 5)
    target, pred, ref = (torch.randn(shape, generator=generator) for _ in range(3))
    ref = pred + 0.1 * ref
    pred = pred.requires_grad_()
    objective = build_objective("dspo", beta=2.0)
    found = objective(pair_errors(pred, target, ref)).loss

    p, t, r = pred.double(), target.double(), ref.double()
    policy, reference = ((v - t).square().flatten(1).mean(1) for v in (p, r))
    margin = (reference - policy)[:3] - (reference - policy)[3:]
    c = (2.0 * torch.sigmoid(-0.5 * 2.0 * margin))[:, None, None, None]
    wanted = ((p - t)[:3] - c * (p - r)[:3]).square().mean()

    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(loss, pred, retain_graph=True)[0] for loss in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)
