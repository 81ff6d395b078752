"""What is logged of groups: best against worst, accuracy over all unequal pairs, means of what has a number."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.objectives import PairInfo, build_objective, pairing
from pgdpo.rows.ranked import ranked
from pgdpo.training import metrics
from pgdpo.training.held_out.measure import measurable
from pgdpo.training.metrics import StepMetrics, bucket_name, group_metrics
from pgdpo.training.task.info import sample_columns
from pgdpo_kernels import GroupErrors

pytestmark = pytest.mark.quick
SHAPES = {"size": st.integers(1, 5), "groups": st.integers(1, 4), "seed": st.integers(0, 2**30)}


def sample(size, groups, seed):
    """(errors member by member, ranks with ties, excess and policy `[B, K]`)."""
    rng = np.random.default_rng(seed)
    policy = rng.uniform(0.05, 0.3, (groups, size))
    excess = rng.choice([-1e-3, 0.0, 1e-3, 2e-3], (groups, size))
    rank = rng.integers(0, 3, (groups, size))
    of = {"policy": policy, "excess": excess, "ref": policy - excess}
    rows = {name: torch.tensor(value.T.reshape(-1, 1)) for name, value in of.items()}
    count = torch.ones(size * groups, 1, dtype=torch.float64)
    return GroupErrors(**rows, count=count, groups=size), rank, policy, excess


def figures(rank, policy, excess) -> dict:
    """Of one group, by loops; what it has no number for is left out."""
    order = sorted(range(len(rank)), key=lambda i: rank[i])
    best, worst = order[0], order[-1]
    found = {
        "error/chosen": policy[best],
        "reward/chosen": -excess[best],
        "displacement": float(excess[best] > 0),
    }
    if rank[best] == rank[worst]:
        return found
    margin = excess[worst] - excess[best]
    pairs = [(i, j) for i in order for j in order if rank[i] < rank[j]]
    right = [1.0 if excess[i] < excess[j] else 0.5 if excess[i] == excess[j] else 0.0 for i, j in pairs]
    found |= {"margin": margin, "implicit_accuracy": np.mean(right), "excess/rejected": excess[worst]}
    return found | {"error/rejected": policy[worst], "reward/rejected": -excess[worst]}


SIDES = {"error/chosen", "reward/chosen", "displacement", "margin", "implicit_accuracy", "excess/rejected"}
SIDES |= {"error/rejected", "reward/rejected"}


@settings(deadline=None, max_examples=80)
@given(**SHAPES)
def test_groups_are_measured_by_best_and_worst_and_all_unequal_pairs(size, groups, seed):
    errors, rank, policy, excess = sample(size, groups, seed)
    info = PairInfo(rank=torch.tensor(rank))
    found, present = group_metrics(errors, build_objective("lpo", beta=500.0)(errors, info), info)
    for group in range(groups):
        wanted = figures(rank[group], policy[group], excess[group])
        for name in SIDES:
            there = bool(present[name][group]) if name in present else True
            assert there == (name in wanted), name
            if there:
                assert float(found[name][group]) == pytest.approx(
                    wanted[name], abs=1e-6 if "accuracy" in name else 1e-12
                ), name
    assert "loss" not in present and found["loss"].shape == (groups,)


def the_first_of_the_worst(places):
    return places.argmin(1), places.argmax(1)


@pytest.mark.parametrize("defect", ["the first of the worst", "accuracy of the ends", "no one is absent"])
def test_that_is_seen(monkeypatch, defect):
    through = metrics.group_metrics
    if defect == "the first of the worst":
        monkeypatch.setattr(pairing, "ends_of", the_first_of_the_worst)
    elif defect == "no one is absent":
        monkeypatch.setitem(globals(), "group_metrics", lambda *given: (through(*given)[0], {}))
    else:

        def ends_alone(errors, output, info):
            found, present = through(errors, output, info)
            ends = metrics.pair_metrics(metrics.as_pairs(errors, info), output)
            return found | {"implicit_accuracy": ends["implicit_accuracy"]}, present

        monkeypatch.setitem(globals(), "group_metrics", ends_alone)
    with pytest.raises(AssertionError):
        test_groups_are_measured_by_best_and_worst_and_all_unequal_pairs()


@pytest.mark.parametrize(("label", "chosen"), [([1.0, -1.0, 1.0], [1, 0, 1]), (None, [1, 1, 1])])
def test_a_single_clip_is_chosen_unless_it_was_found_bad(label, chosen):
    errors, _, policy, excess = sample(1, 3, 0)
    info = PairInfo(label=None if label is None else torch.tensor(label)[:, None])
    found, present = group_metrics(errors, build_objective("kto", beta=500.0)(errors, info), info)
    assert (
        present["error/chosen"].tolist() == present["displacement"].tolist() == [bool(one) for one in chosen]
    )
    assert present["error/rejected"].tolist() == [not one for one in chosen]
    assert not present["margin"].any() and not present["implicit_accuracy"].any()
    for name in ("error/chosen", "error/rejected"):
        np.testing.assert_allclose(found[name], policy[:, 0])


# --- means over a step ------------------------------------------------------------------------------------------------


@pytest.fixture
def one_rank(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda group: 1)
    monkeypatch.setattr(dist, "all_gather", lambda found, own, group: found[0].copy_(own))


@pytest.mark.parametrize("seed", range(6))
def test_a_steps_means_are_of_the_groups_that_have_the_number(one_rank, seed):
    rng = np.random.default_rng(seed)
    step = StepMetrics(torch.device("cpu"), None, sources=("a", "b"))
    kept = []
    for groups in (3, 1, 2):
        values = {name: rng.normal(size=groups) for name in ("loss", "margin")}
        has, counts = rng.random(groups) < 0.5, rng.random(groups) < 0.8
        sigma, source = rng.random(groups), rng.choice(["a", "b"], groups)
        values["margin"][~has] = np.nan
        tensors = {name: torch.tensor(value) for name, value in values.items()}
        rows = [{"manifest_name": str(name)} for name in source]
        step.add(tensors, {"margin": torch.tensor(has)}, torch.tensor(sigma), torch.tensor(counts), rows)
        for g in range(groups):
            one = {name: value[g] for name, value in values.items() if name == "loss" or has[g]}
            kept += [(one, sigma[g], source[g])] if counts[g] else []
    found = step.reduce()
    part = lambda wanted: [one for one, sigma, source in kept if wanted(sigma, source)]  # noqa: E731
    assert_means(found, part(lambda sigma, source: True))
    for kind, parts in (
        ("buckets", {bucket_name(i): part(lambda sigma, _, i=i: int(4 * sigma) == i) for i in range(4)}),
        ("sources", {name: part(lambda _, source, name=name: source == name) for name in "ab"}),
    ):
        assert found[kind].keys() == {name for name, ones in parts.items() if ones}
        for name, means in found[kind].items():
            assert means["pairs"] == len(parts[name])
            assert_means(means, parts[name])


def assert_means(found, ones):
    for name in ("loss", "margin"):
        values = [one[name] for one in ones if name in one]
        if values:
            assert found[name] == pytest.approx(np.mean(values))
        else:
            assert math.isnan(found[name])


# --- the order of samples ---------------------------------------------------------------------------------------------


def test_groups_of_one_batch_may_be_rated_in_different_ways():
    """A manifest of ranks beside one of scores, or of thumbs: each group has its own order."""
    groups = [
        [{"rank": 2}, {"rank": 0}, {"rank": 1}],
        [{"score": 0.5}, {"score": 0.9}, {"score": 0.9}],
        [{"label": -1}, {"label": 1}, {"label": -1}],
        [{"advantage": 0.0}, {"advantage": -1.0}, {"advantage": 1.0}],
    ]
    columns = sample_columns(groups)
    assert columns == {"rank": [[2, 0, 1], [2, 0, 0], [1, 0, 1], [1, 2, 0]]}
    errors, _, _, excess = sample(3, 4, 7)
    info = PairInfo(rank=torch.tensor(columns["rank"]))
    pairs = pairing.best_and_worst(errors, info)[0]
    for side, end in ((pairs.excess_chosen, 0), (pairs.excess_rejected, -1)):  # as evaluation has them
        wanted = [excess[g][ranked(samples)[end]] for g, samples in enumerate(groups)]
        np.testing.assert_allclose(side[:, 0], wanted)


def test_what_has_no_margin_is_not_measured():
    groups = [[{"rank": 0}, {"rank": 0}], [{"score": 1.0}], [{"score": 1.0}, {"score": 2.0}], [{}, {}]]
    rows = [{"samples": samples} for samples in groups] + [{"chosen": "a", "rejected": "b"}]
    assert measurable(SimpleNamespace(rows=rows)) == [2, 3, 4]
