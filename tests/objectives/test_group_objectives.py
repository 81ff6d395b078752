"""Objectives on groups of K samples against loops over lists, and pair objectives on the pairs that a rule names."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import objective_oracle_lists as lists
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_oracle import ell, sigma

from pgdpo.messages.errors import InputError
from pgdpo.objectives import PairInfo, available, build_objective, get_spec
from pgdpo.objectives.pairing import PAIRINGS
from pgdpo_kernels import GroupErrors, PairErrors

pytestmark = pytest.mark.quick
BETA = 2000.0
SHAPES = {"size": st.integers(1, 6), "groups": st.integers(1, 4), "seed": st.integers(0, 2**30)}
WHOLE = [name for name in available() if get_spec(name).groups]


def sample(size: int, groups: int, seed: int, segments: int = 1):
    """(errors of groups member by member, what the data say of them, both as arrays `[B, K]` too)."""
    rng = np.random.default_rng(seed)
    shape = (size * groups, segments)
    fields = {
        "policy": rng.uniform(0.05, 0.3, shape),
        "excess": rng.normal(0, 1e-3, shape),
        "drift": rng.uniform(0, 1e-3, shape),
    }
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in fields.items()}
    ref = (tensors["policy"] - tensors["excess"]).detach()
    count = torch.tensor(rng.integers(1, 9, (1, segments)).astype(float)).expand(shape)
    errors = GroupErrors(**tensors, ref=ref, count=count, groups=size)
    said = {
        "rank": rng.permuted(np.tile(np.arange(float(size)), (groups, 1)), axis=1),
        "advantage": rng.normal(0, 1, (groups, size)),
        "label": rng.choice([-1.0, 1.0], (groups, size)),
    }
    said["reward"] = (size - said["rank"]) / 7 + 0.01 * rng.uniform(
        0, 1, (groups, size)
    )  # falls as ranks rise
    info = {"timestep_weight": rng.uniform(0.2, 2, groups), "weight": rng.uniform(0.5, 2, groups)}
    share = count.numpy()[:1] / count.numpy()[:1].sum()
    whole = {name: (value * share).sum(1).reshape(size, groups).T for name, value in fields.items()}
    return (
        errors,
        PairInfo(**{n: torch.tensor(v) for n, v in {**said, **info}.items()}),
        whole,
        {**said, **info},
    )


def one_list(whole, said, group: int, beta: float) -> SimpleNamespace:
    omega = said["timestep_weight"][group]
    s = -0.5 * beta * omega * whole["excess"][group]
    of_samples = {name: said[name][group] for name in lists.SAMPLES}
    return SimpleNamespace(s=s, E=whole["policy"][group], e=whole["excess"][group], omega=omega, **of_samples)


@pytest.mark.parametrize("name", ["lpo", "rank_dpo", "gdro", "adpo", "dgpo"])
@settings(deadline=None, max_examples=25)
@given(**SHAPES, segments=st.integers(1, 3))
def test_list_objectives_are_their_formulas_on_whole_lists(name, size, groups, seed, segments):
    errors, info, whole, said = sample(size, groups, seed, segments)
    objective = build_objective(name, beta=BETA, **({"target": "reward"} if name == "adpo" else {}))
    output = objective(errors, info)
    found = [one_list(whole, said, group, BETA) for group in range(groups)]
    wanted = np.array([getattr(lists, name)(one, one, objective.options) for one in found]) * said["weight"]
    np.testing.assert_allclose(output.per_group.detach(), wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(output.loss.item(), wanted.mean(), rtol=1e-9, atol=1e-12)
    assert output.logits.shape == (groups,)


@pytest.mark.parametrize("name", ["lpo", "rank_dpo", "gdro", "adpo"])
def test_their_gradients(name):
    errors, info, _, _ = sample(4, 3, 5)
    objective = build_objective(name, beta=BETA, **({"target": "reward"} if name == "adpo" else {}))

    def loss(policy, excess):
        return objective(GroupErrors(policy, errors.ref, excess, groups=4), info).loss

    torch.autograd.gradcheck(loss, (errors.policy, errors.excess), eps=1e-6, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=25)
@given(**SHAPES)
def test_kto_is_its_formula_on_single_samples_and_groups(size, groups, seed):
    errors, info, whole, said = sample(size, groups, seed)
    output = build_objective("kto", beta=BETA, undesirable_weight=0.5)(errors, info)
    reward, label = -whole["excess"], said["label"]
    zero = max(0.0, reward.mean())
    z = label * BETA * said["timestep_weight"][:, None] * (reward - zero)
    wanted = (np.where(label > 0, 1.0, 0.5) * (1 - sigma(z))).mean(1) * said["weight"]
    np.testing.assert_allclose(output.per_group.detach(), wanted, rtol=1e-9)


def loops(rule: str, rank: np.ndarray) -> list[tuple[int, int]]:
    """(better, worse) samples of one list, in no order."""
    order = sorted(range(len(rank)), key=lambda i: (rank[i], i))
    if rule == "best_worst":
        found = [(order[0], order[-1])]
    elif rule == "adjacent":
        found = list(zip(order, order[1:], strict=False))
    else:
        found = [(a, b) for a in order for b in order if rank[a] < rank[b]]
    return [(a, b) for a, b in found if rank[a] < rank[b]]


@pytest.mark.parametrize("rule", PAIRINGS)
@settings(deadline=None, max_examples=25)
@given(size=st.integers(2, 6), groups=st.integers(1, 4), seed=st.integers(0, 2**30), ties=st.booleans())
def test_pair_objectives_compare_the_pairs_that_the_rule_names(rule, size, groups, seed, ties):
    errors, info, whole, said = sample(size, groups, seed, 2)
    if ties:
        said["rank"] = said["rank"] // 2
        info.rank = torch.tensor(said["rank"])
    output = build_objective("dpo", beta=BETA, pairing=rule)(errors, info)
    wanted = []
    for group in range(groups):
        s = one_list(whole, said, group, BETA).s
        losses = [ell(s[a] - s[b]) for a, b in loops(rule, said["rank"][group])]
        wanted.append(np.mean(losses) * said["weight"][group] if losses else 0.0)
    np.testing.assert_allclose(output.per_group.detach(), wanted, rtol=1e-9)
    assert output.logits.shape == output.per_group.shape == (groups,)


def test_a_pair_as_a_group_has_the_bits_of_a_pair():
    errors, info, _, _ = sample(2, 5, 3)
    info.rank = torch.tensor([[0.0, 1.0]] * 5)
    halves = {
        f"{name}_{side}": getattr(errors, name).detach()[half]
        for name in ("policy", "ref", "excess", "drift")
        for side, half in (("chosen", slice(0, 5)), ("rejected", slice(5, 10)))
    }
    of_pair = {name: value for name, value in vars(info).items() if name != "rank"}
    of_pair["reward_margin"] = info.reward[:, 0] - info.reward[:, 1]
    of_pair |= {
        "probability": torch.ones(5, dtype=torch.float64),
        "uncertainty": torch.rand(5),
        "gap_frequency": torch.rand(5) / 2 + 0.1,
    }
    of_pair["timestep"] = torch.rand(5, dtype=torch.float64)
    for name in available():
        spec = get_spec(name)
        if {"segment_labels", "tail", "masked"} & set(spec.needs.pairs):
            continue
        found = [
            build_objective(name)(errors, PairInfo(**{**of_pair, "rank": info.rank})),
            build_objective(name)(PairErrors(**halves, count=errors.count[:5]), PairInfo(**of_pair)),
        ]
        assert torch.equal(*(output.per_group.detach() for output in found)), name
        assert torch.equal(*(output.logits for output in found)), name


def test_groups_are_ordered_by_rank_then_score_then_label():
    errors, _, whole, said = sample(3, 2, 1)
    objective = build_objective("lpo", beta=BETA)
    by = {name: torch.tensor(said[name]) for name in ("rank", "reward")}
    ranked = objective(errors, PairInfo(rank=by["rank"])).per_group
    assert torch.equal(ranked, objective(errors, PairInfo(reward=by["reward"])).per_group)
    label = torch.where(by["rank"] == 0, 1.0, -1.0)
    dpo = build_objective("dpo", beta=BETA, pairing="all")
    best = {"rank": torch.where(by["rank"] == 0, 0.0, 1.0)}
    assert torch.equal(dpo(errors, PairInfo(label=label)).per_group, dpo(errors, PairInfo(**best)).per_group)


def test_single_clips_that_were_found_bad_are_not_fitted():
    errors, info, whole, _ = sample(1, 4, 2)
    info.label, info.weight = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), None
    found = build_objective("sft")(errors, info).per_group.detach()
    np.testing.assert_allclose(found, whole["policy"][:, 0] * [1, 0, 1, 0])


@pytest.mark.parametrize(
    ("name", "options", "size", "message"),
    [
        ("dpo", {}, 1, "compares samples, and these are groups of one: take `kto`, or `sft`"),
        ("dpo", {"safeguard": {}}, 3, "`safeguard` looks at the two samples of a pair"),
        ("lpo", {"adaptive_clip": {}}, 3, "`adaptive_clip` looks at the two samples of a pair"),
        ("adpo", {}, 3, "set target to `reward`"),
        ("lpo", {}, torch.tensor([0, 0, 1]), "groups of one size at a time"),
    ],
)
def test_refusals(name, options, size, message):
    count = size if isinstance(size, int) else 3
    errors, info, _, _ = sample(count, 1, 0)
    errors.groups, info.probability = size, torch.ones(1)
    with pytest.raises(InputError, match=message):
        build_objective(name, **options)(errors, info)


def test_pairing_is_for_objectives_on_pairs():
    for name in WHOLE:
        with pytest.raises(InputError, match="`pairing` is for objectives that compare pairs"):
            build_objective(name, pairing="all")
