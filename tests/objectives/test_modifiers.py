"""Modifiers around objectives: what they change, and that they change nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from objective_rows import ROWS
from objective_samples import FIELDS, random_errors, random_info, to_pair_info, to_torch

from pgdpo.messages.errors import InputError
from pgdpo.objectives import available, build_objective, get_spec

pytestmark = pytest.mark.quick

CHOSEN = ("policy_chosen", "excess_chosen", "drift_chosen")
REJECTED = ("policy_rejected", "excess_rejected", "drift_rejected")


def sample(cross=None, pairs: int = 5):
    errors = to_torch(random_errors(np.random.default_rng(0), pairs, 1))
    return (
        errors
        if cross is None
        else replace(errors, cross=torch.as_tensor(cross, dtype=torch.float64)[:, None])
    )


def info_for(objective, pairs: int = 5):
    rng = np.random.default_rng(1)
    info = random_info(rng, pairs, 1)
    info["masked"] = random_errors(rng, pairs, 1)
    return to_pair_info({name: info[name] for name in objective.needs.pairs})


def run(objective, errors):
    output = objective(errors, info_for(objective, len(errors.policy_chosen)))
    leaves = [getattr(errors, field) for field in FIELDS.values()]
    gradients = torch.autograd.grad(output.loss, leaves, allow_unused=True, materialize_grads=True)
    return output, dict(zip(FIELDS.values(), gradients, strict=True))


CROSS = [-0.1, 0.0, 0.02, 0.09, 1e4]  # against, orthogonal, weakly, strongly, absurdly aligned


def expected_scale(errors, mu: float) -> torch.Tensor:
    """Per pair, from Diffusion-SDPO's rule."""
    rows = zip(errors.cross[:, 0].tolist(), errors.policy_chosen[:, 0].tolist(), strict=True)
    return torch.tensor(
        [1.0 if c <= 0 else min(1, max(0, (1 - mu) * e / (c + 1e-9))) for c, e in rows], dtype=torch.float64
    )


@pytest.mark.parametrize("name", available())
def test_safeguard_scales_the_rejected_gradient_alone(name):
    options = ROWS[name][1][0]
    errors = sample(CROSS)
    plain, plain_gradients = run(build_objective(name, **options), errors)
    objective = build_objective(name, **options, safeguard={"mu": 0.5})
    guarded, gradients = run(objective, errors)
    assert objective.needs_cross
    assert torch.equal(plain.per_group, guarded.per_group)
    scale = expected_scale(errors, 0.5)[:, None]
    assert 0 < scale[3] < 1 == scale[1]
    for field in CHOSEN:
        torch.testing.assert_close(gradients[field], plain_gradients[field])
    for field in REJECTED:
        torch.testing.assert_close(gradients[field], scale * plain_gradients[field])
    torch.testing.assert_close(guarded.stats["safeguard/lambda"], scale[:, 0])


def test_safeguard_reaches_the_masked_errors():
    errors = sample(CROSS)
    masked = to_torch(random_errors(np.random.default_rng(2), 5, 1))
    gradients = []
    for options in ({}, {"safeguard": {"mu": 0.5}}):
        objective = build_objective("local_dpo", beta=2000.0, **options)
        loss = objective(errors, replace(info_for(objective), masked=masked)).loss
        gradients.append(torch.autograd.grad(loss, masked.excess_rejected)[0])
    torch.testing.assert_close(gradients[1], expected_scale(errors, 0.5)[:, None] * gradients[0])


def test_safeguard_per_microbatch():
    errors = sample([0.02, 0.05, 0.09, 0.03, -0.01])
    _, plain = run(build_objective("dpo", beta=2000.0), errors)
    guarded = build_objective("dpo", beta=2000.0, safeguard={"mu": 0.9, "scope": "microbatch"})
    output, gradients = run(guarded, errors)
    scale = 0.1 * errors.policy_chosen.mean() / (errors.cross.mean() + 1e-9)
    assert 0 < scale < 1
    torch.testing.assert_close(gradients["excess_rejected"], scale * plain["excess_rejected"])
    torch.testing.assert_close(output.stats["safeguard/lambda"], scale.detach())


def test_safeguard_at_mu_zero_and_orthogonal_residuals_is_none():
    errors = sample([0.0] * 5)
    _, plain = run(build_objective("dpo", beta=2000.0), errors)
    _, guarded = run(build_objective("dpo", beta=2000.0, safeguard={"mu": 0.0}), errors)
    for field, gradient in plain.items():
        assert torch.equal(guarded[field], gradient)


def test_safeguard_agrees_with_the_kernel_s():
    from pgdpo_kernels import preference_loss

    errors = sample(CROSS)
    _, found = run(build_objective("dpo", beta=2000.0, safeguard={"mu": 0.7}), errors)
    loss = preference_loss(errors, beta=2000.0, objective="dpo", safeguard_mu=0.7).loss
    torch.testing.assert_close(found["excess_rejected"], torch.autograd.grad(loss, errors.excess_rejected)[0])


@pytest.mark.parametrize("name", ["dpo", "pg_dpo", "simpo", "kto", "lpo"])
def test_sft_weight_adds_the_chosen_error(name):
    errors = sample()
    plain, _ = run(build_objective(name), errors)
    fitted, _ = run(build_objective(name, sft_weight=0.3), errors)
    torch.testing.assert_close(fitted.per_group, plain.per_group + 0.3 * errors.policy_chosen[:, 0])


def takes(name: str, *options: str) -> bool:
    spec = get_spec(name)
    return name != "ipo" and spec.needs.reference and all(option in spec.options for option in options)


CAPPED = [name for name in available() if takes(name)]
PULLED = [name for name in CAPPED if takes(name, "beta")]
# Their value above the cap is that at the cap, log(1 + e^-cap); that of all others stays.
FLAT = {"dpo", "inpo", "npo", "pg_dpo", "dense_dpo", "ld_dpo"}


@pytest.mark.parametrize("name", CAPPED)
def test_above_the_cap_a_pair_has_no_gradient(name):
    """The gradient is that of the other pairs' losses, whole. (PG-DPO's second term goes on: tests/kernels.)"""
    options = ROWS[name][1][0] | ({"ipr_weight": 0.0} if name == "pg_dpo" else {})
    errors = sample(pairs=12)
    plain = build_objective(name, **options)
    plain = plain(errors, info_for(plain, 12))
    cap = plain.logits.max().item() / 2
    below = plain.logits <= cap
    assert cap > 0 and 0 < below.sum() < 12
    capped, gradients = run(build_objective(name, **options, logit_cap=cap), errors)
    leaves = [getattr(errors, field) for field in FIELDS.values()]
    wanted = torch.autograd.grad(
        (plain.per_group * below).mean(), leaves, allow_unused=True, materialize_grads=True
    )
    for field, expected in zip(FIELDS.values(), wanted, strict=True):
        torch.testing.assert_close(gradients[field], expected, msg=field)
    assert torch.equal(capped.logits, plain.logits)
    flat = plain.per_group.where(below, np.log1p(np.exp(-cap))) if name in FLAT else plain.per_group
    torch.testing.assert_close(capped.per_group, flat.clamp_min(1 - cap) if name == "hinge" else flat)


def pulled_at(name, options, raw, info) -> tuple[np.ndarray, np.ndarray]:
    """What the pull's excess error has of each side in each segment: the side that the formula prefers."""
    share = raw.count / raw.count.sum(1, keepdims=True)
    if name == "npo":
        return 0 * share, share
    if name == "ld_dpo":
        return share * (1 - (1 - options["alpha"]) * info["tail"]), 0 * share
    if name == "dense_dpo" or options.get("segments") == "labelled":
        parts = share.shape[1] if options.get("form") == "mean" else 1
        return (info["segment_labels"] > 0) / parts, (info["segment_labels"] < 0) / parts
    return share, 0 * share


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in PULLED for options in ROWS[name][1]]
)
def test_the_pull_is_on_the_better_side_in_units_of_kappa(name, options):
    rng = np.random.default_rng(4)
    raw, info = random_errors(rng, 5, 3), random_info(rng, 5, 3)
    info["masked"] = random_errors(rng, 5, 3)
    errors, found = to_torch(raw), []
    for added in ({}, {"chosen_pull": 0.3}):
        objective = build_objective(name, **options, **added)
        pairs = {key: info[key] for key in {*objective.needs.pairs, "weight", "timestep_weight"}}
        found.append(objective(errors, to_pair_info(pairs)))
    unit = 0.3 * objective.options["beta"] / 2 * (info["timestep_weight"] * info["weight"])[:, None]
    parts = [unit * part for part in pulled_at(name, objective.options, raw, info)]
    added = (parts[0] * raw.segments["e_w"] + parts[1] * raw.segments["e_l"]).sum(1)
    plain, pulled = (output.per_group for output in found)
    np.testing.assert_allclose((pulled - plain).detach(), added, rtol=1e-6, atol=1e-12)
    leaves = [getattr(errors, field) for field in FIELDS.values()]
    slopes = torch.autograd.grad((pulled - plain).sum(), leaves, allow_unused=True, materialize_grads=True)
    wanted = {"excess_chosen": parts[0], "excess_rejected": parts[1]}
    for field, slope in zip(FIELDS.values(), slopes, strict=True):
        np.testing.assert_allclose(slope, wanted.get(field, 0.0), rtol=1e-6, atol=1e-6, err_msg=field)


@pytest.mark.parametrize("name", PULLED)
def test_a_policy_that_is_the_reference_loses_what_it_lost(name):
    errors, untrained = sample(), []
    for added in ({}, {"logit_cap": 8.0, "chosen_pull": 0.5}):
        objective = build_objective(name, **ROWS[name][1][0], **added)
        untrained.append(objective.untrained(errors, info_for(objective)))
    assert torch.equal(*untrained)


@pytest.mark.parametrize("name", ["dpo", "npo", "cdpo", "pg_dpo"])
def test_numbers_may_change_between_steps(name):
    """As a steered run changes them."""
    errors = sample()
    first, then = (
        {"beta": b, "logit_cap": c, "chosen_pull": p} for b, c, p in ((500.0, 8.0, 0.0), (2e3, 0.5, 0.4))
    )
    steered = build_objective(name, **first)
    run(steered, errors)
    steered.options.update(then)
    found, wanted = (run(objective, errors) for objective in (steered, build_objective(name, **then)))
    assert torch.equal(found[0].per_group, wanted[0].per_group)
    assert all(torch.equal(found[1][field], gradient) for field, gradient in wanted[1].items())


def test_saturation_skip_keeps_the_expectation():
    """Over many draws the mean weight of saturated pairs is 1; the others always have weight 1."""
    errors = random_errors(np.random.default_rng(0), 200, 1)
    objective = build_objective("dpo", beta=20000.0, saturation_skip={"threshold": 8.0, "keep": 0.25})
    weights = torch.stack([objective(to_torch(errors)).stats["saturation_skip/weight"] for _ in range(400)])
    saturated = torch.as_tensor(10000 * errors.m > 8)
    assert 20 < saturated.sum() < 180
    assert (weights[:, ~saturated] == 1).all()
    assert set(weights[:, saturated].unique().tolist()) == {0.0, 4.0}
    assert weights[:, saturated].mean().sub(1).abs() < 0.05


def test_saturation_skip_draws_are_reproducible():
    errors = to_torch(random_errors(np.random.default_rng(0), 50, 1))

    def weights(seed):
        objective = build_objective("dpo", beta=20000.0, saturation_skip={"keep": 0.5}, seed=seed)
        return [objective(errors).stats["saturation_skip/weight"] for _ in range(2)]

    assert torch.equal(weights(1)[0], weights(1)[0])
    assert not torch.equal(weights(1)[0], weights(1)[1])
    assert not torch.equal(weights(1)[0], weights(2)[0])


def bapo_bounds(chosen: np.ndarray, rejected: np.ndarray, share: float) -> tuple[float, float]:
    """Raise the upper, then the lower bound, one step at a time, until the chosen side has its share."""
    high, low = 1.2, 0.6
    while True:
        positive, negative = chosen[chosen <= high].sum(), rejected[rejected >= low].sum()
        if positive >= share * (positive + negative):
            return high, low
        if high + 0.05 <= 3.0 + 1e-9:
            high += 0.05
        elif low + 0.02 <= 0.9 + 1e-9:
            low += 0.02
        else:
            return high, low


@pytest.mark.parametrize("shift", [0.0, 1.5e-3, -1.5e-3, 1.0])
def test_adaptive_clip(shift):
    """Values stay; gradients stop outside the bounds of a plain loop."""
    errors = random_errors(np.random.default_rng(3), 40, 1)
    errors.segments["e_w"] -= shift  # the chosen improves: its ratios grow
    given = to_torch(errors)
    plain = build_objective("dpo", beta=2000.0)(given)
    clipped = build_objective("dpo", beta=2000.0, adaptive_clip={})(given)
    assert torch.equal(plain.per_group, clipped.per_group)
    ratios = [np.exp(np.clip(-1000 * errors.segments[key][:, 0], -20, 20)) for key in ("e_w", "e_l")]
    high, low = bapo_bounds(*ratios, share=0.4)
    assert clipped.stats["adaptive_clip/high"].item() == pytest.approx(high, rel=1e-5)
    assert clipped.stats["adaptive_clip/low"].item() == pytest.approx(low, rel=1e-5)
    leaves = (given.excess_chosen, given.excess_rejected)
    kept = (ratios[0] <= high + 1e-6, ratios[1] >= low - 1e-6)
    for full, stopped, keep in zip(
        torch.autograd.grad(plain.loss, leaves), torch.autograd.grad(clipped.loss, leaves), kept, strict=True
    ):
        torch.testing.assert_close(stopped[:, 0], full[:, 0] * torch.as_tensor(keep))


def test_modifiers_compose():
    errors = sample(CROSS)
    modifiers = {"safeguard": {}, "sft_weight": 0.1, "saturation_skip": {}, "adaptive_clip": {}}
    for name in ("dpo", "pg_dpo", "lpo", "kto"):
        output, gradients = run(build_objective(name, beta=2000.0, **modifiers), errors)
        assert output.loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_adaptive_clip_needs_a_ratio():
    for name in ("sft", "mapo", "simpo"):
        with pytest.raises(InputError, match=rf"`{name}`.*adaptive_clip.*beta"):
            build_objective(name, adaptive_clip={})


def test_limits_need_a_logit_and_its_kappa():
    for name in available():
        for modifier, refused in (("logit_cap", name not in CAPPED), ("chosen_pull", name not in PULLED)):
            if refused:
                with pytest.raises(
                    InputError, match=rf"`{name}`: `{modifier}`.*(reference|margin of its own)"
                ):
                    build_objective(name, **{modifier: 1.0})
    with pytest.raises(InputError, match="logit_cap.*reference"):
        build_objective("dro", form="direct", logit_cap=1.0)
