"""Every objective against its formula in numpy float64: values, and finite differences of the formula."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from objective_oracle import Errors
from objective_rows import ROWS
from objective_samples import FIELDS, random_errors, random_info, to_pair_info, to_torch

from pgdpo.objectives import available, build_objective, get_spec

pytestmark = pytest.mark.quick

CASES = [(name, options) for name, (_, cases) in ROWS.items() for options in cases]
IDS = [f"{name}-{'-'.join(f'{k}={v}' for k, v in options.items())}" for name, options in CASES]


def case(name: str, options: dict, seed: int, *, everything: bool, pairs: int = 6, segments: int = 3):
    """Random errors, the pair data (all of it, or only what is needed) and the objective."""
    rng = np.random.default_rng(seed)
    errors, info = random_errors(rng, pairs, segments), random_info(rng, pairs, segments)
    info["masked"] = random_errors(rng, pairs, segments)
    objective = build_objective(name, **options)
    optional = objective.options.get("target") == "probability"  # a soft label of pairs: no lists
    if not everything or optional:
        info = {key: value for key, value in info.items() if key in objective.needs.pairs}
    return errors, info, objective


def expected(name: str, live: Errors, frozen: Errors, options: dict, info: dict) -> np.ndarray:
    """The oracle's losses `[B]`, weighted."""
    return ROWS[name][0](live, frozen, options, info) * info.get("weight", 1.0)


def numeric_gradient(loss, errors: Errors, name: str) -> np.ndarray:
    """By central differences with one Richardson step, for every entry of one field."""
    gradient = np.zeros_like(errors.segments[name])
    step = 1e-4 if name.startswith("E") else 2e-6

    def moved(index, by):
        values = {key: value.copy() for key, value in errors.segments.items()}
        values[name][index] += by
        return loss(Errors(values, errors.count))

    for index in np.ndindex(gradient.shape):
        coarse = (moved(index, step) - moved(index, -step)) / (2 * step)
        fine = (moved(index, step / 2) - moved(index, -step / 2)) / step
        gradient[index] = (4 * fine - coarse) / 3
    return gradient


def test_every_name_has_an_oracle():
    assert set(ROWS) == set(available())


@pytest.mark.parametrize("everything", [False, True], ids=["bare", "full"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_value(name, options, everything):
    for seed in range(3):
        errors, info, objective = case(name, options, seed, everything=everything)
        output = objective(to_torch(errors), to_pair_info(info))
        losses = expected(name, errors, errors, objective.options, info)
        np.testing.assert_allclose(output.per_group.detach().numpy(), losses, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(output.loss.item(), losses.mean(), rtol=1e-9)
        assert output.logits.shape == (6,)
        assert not output.logits.requires_grad


@pytest.mark.parametrize("everything", [False, True], ids=["bare", "full"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_gradient(name, options, everything):
    errors, info, objective = case(name, options, 7, everything=everything, pairs=4, segments=2)
    given = to_torch(errors)
    objective(given, to_pair_info(info)).loss.backward()

    def loss(live: Errors) -> float:
        return expected(name, live, errors, objective.options, info).mean()

    for key, field in FIELDS.items():
        wanted = numeric_gradient(loss, errors, key)
        found = getattr(given, field).grad
        found = np.zeros_like(wanted) if found is None else found.numpy()
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7 * scale + 1e-10, err_msg=field)


DETACHED = {"pg_dpo", "bco", "beta_dpo", "sgdpo", "balanced_dpo", "kto", "dgpo", "linear_dpo", "sipo"}


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] not in DETACHED])
def test_gradcheck(name, options):
    """Autograd against its own finite differences. `test_gradient` has the rows with a stop-gradient."""
    errors, info, objective = case(name, options, 11, everything=False, pairs=3, segments=2)
    given, pairs = to_torch(errors), to_pair_info(info)
    leaves = {field: getattr(given, field) for field in FIELDS.values()}

    def loss(*values):
        built = type(given)(**dict(zip(leaves, values, strict=True)), count=given.count)
        return objective(built, pairs).loss

    torch.autograd.gradcheck(loss, tuple(leaves.values()), eps=1e-6, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_single_precision(name, options):
    errors, info, objective = case(name, options, 3, everything=True)
    output = objective(to_torch(errors, torch.float32), to_pair_info(info, torch.float32))
    losses = expected(name, errors, errors, objective.options, info)
    assert output.per_group.dtype == torch.float32
    np.testing.assert_allclose(output.per_group.detach().numpy(), losses, rtol=2e-4, atol=1e-6)


def test_bco_keeps_a_running_mean():
    objective = build_objective("bco", beta=2000.0)
    rng = np.random.default_rng(5)
    seen = []
    for _ in range(3):
        errors = random_errors(rng, 5, 1)
        seen.append(1000 * np.concatenate([errors.r_w, errors.r_l]))
        output = objective(to_torch(errors))
        np.testing.assert_allclose(output.stats["bco/shift"].item(), np.concatenate(seen).mean(), rtol=1e-9)


def test_beta_dpo_follows_the_gap():
    objective = build_objective("beta_dpo", beta=2000.0, momentum=0.9, keep=1.0, sensitivity=0.5)
    rng = np.random.default_rng(6)
    first, second = random_errors(rng, 5, 1), random_errors(rng, 5, 1)
    objective(to_torch(first))
    output = objective(to_torch(second))
    gaps = [1000 * first.m, 1000 * second.m]
    mean = 0.9 * gaps[0].mean() + 0.1 * gaps[1].mean()
    factor = max(0.01, 1 + 0.5 * (gaps[1].mean() - mean))
    np.testing.assert_allclose(output.stats["beta_dpo/beta"].item(), 2000 * factor, rtol=1e-9)
    np.testing.assert_allclose(
        output.per_group.detach().numpy(), np.log1p(np.exp(-factor * gaps[1])), rtol=1e-9
    )


@pytest.mark.parametrize("name", ["bco", "beta_dpo", "sgdpo"])
def test_state_survives_json_and_stands_still_in_validation(name):
    rng = np.random.default_rng(8)
    errors = [to_torch(random_errors(rng, 4, 4)) for _ in range(3)]
    straight = build_objective(name, beta=2000.0)
    straight(errors[0])
    resumed = build_objective(name, beta=2000.0)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    with torch.no_grad():
        straight(errors[1])
    assert straight.state_dict() == resumed.state_dict() != {}
    assert torch.equal(straight(errors[2]).per_group, resumed(errors[2]).per_group)


def test_sgdpo_estimates_from_a_subset_of_the_segments():
    """Each pair's loss is that of one of the six pairs of segments, and not always of the same."""
    rng = np.random.default_rng(9)
    errors = random_errors(rng, 20, 4)
    found = build_objective("sgdpo", beta=2000.0, subset=0.5)(to_torch(errors)).per_group.detach().numpy()
    subsets = [(i, j) for i in range(4) for j in range(i)]

    def estimate(name, chosen):
        picked, count = errors.segments[name][:, chosen], errors.count[:, chosen]
        return -(picked * count).sum(1) / count.sum(1)

    losses = np.stack(
        [
            np.log1p(np.exp(-1000 * (errors.r_w - estimate("e_l", list(s))))) / 2
            + np.log1p(np.exp(-1000 * (estimate("e_w", list(s)) - errors.r_l))) / 2
            for s in subsets
        ]
    )
    match = np.isclose(losses, found, rtol=1e-9)
    assert (match.sum(0) == 1).all()
    assert len(set(match.argmax(0))) > 2


def test_options_are_the_formula_s_keywords():
    import inspect

    for name in available():
        spec = get_spec(name)
        parameters = inspect.signature(spec.compute).parameters.values()
        named = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        assert named <= set(spec.options), name
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            assert named == set(spec.options), name
