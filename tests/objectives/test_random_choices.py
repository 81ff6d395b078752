"""What is left to chance is a pair's own: by seed, id, draw and use, whatever batch, place or rank it stands in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_samples import random_errors, to_torch
from scipy import stats

from pgdpo.messages.errors import InputError
from pgdpo.objectives import PairInfo, build_objective
from pgdpo.objectives.batch import Batch
from pgdpo_kernels import PairErrors

pytestmark = pytest.mark.quick

PAIRS = st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**40)), min_size=1, max_size=8)


def batch_of(pairs, *, seed: int = 0, state: dict | None = None) -> Batch:
    """`pairs`: (id, draw)s, or their number where nothing is known of them."""
    count = pairs if isinstance(pairs, int) else len(pairs)
    zeros = torch.zeros(count, 1)
    errors = PairErrors(zeros, zeros, zeros, zeros, zeros, zeros, count=torch.ones(count, 1))
    if isinstance(pairs, int):
        return Batch("dpo", errors, PairInfo(), {} if state is None else state, seed=seed)
    ids, draw = torch.tensor(pairs, dtype=torch.int64).unbind(1)
    return Batch("dpo", errors, PairInfo(ids=ids, draw=draw), {}, seed=seed)


@given(PAIRS, st.data())
@settings(deadline=None)
def test_a_pair_has_its_numbers_in_any_batch_and_place(pairs, data):
    whole = batch_of(pairs).uniform(3, stream="a")
    assert whole.shape == (len(pairs), 3) and (whole >= 0).all() and (whole < 1).all()
    order = data.draw(st.permutations(range(len(pairs))))
    size = data.draw(st.integers(1, len(pairs)))
    for start in range(0, len(pairs), size):
        part = order[start : start + size]
        assert torch.equal(batch_of([pairs[i] for i in part]).uniform(3, stream="a"), whole[part])


def test_pairs_draws_seeds_and_uses_differ():
    pairs = [(number, draw) for number in range(40) for draw in range(25)]
    numbers = batch_of(pairs).uniform(2, stream="a")
    assert stats.kstest(numbers.flatten().numpy(), "uniform").pvalue > 1e-3
    others = batch_of(pairs, seed=1).uniform(2, stream="a"), batch_of(pairs).uniform(2, stream="b")
    for one, two in ((numbers, others[0]), (numbers, others[1]), (numbers[:, :1], numbers[:, 1:])):
        assert abs(np.corrcoef(one.flatten(), two.flatten())[0, 1]) < 0.1
    assert len(set(numbers.flatten().tolist())) > 1990  # of 2000


def test_two_ranks_choose_otherwise():
    """They hold other pairs, at the same places."""
    mine, theirs = ([(4 * number + rank, 0) for number in range(50)] for rank in range(2))
    assert not (batch_of(mine).uniform(1, stream="a").equal(batch_of(theirs).uniform(1, stream="a")))


def test_without_ids_the_place_and_the_count_stand_for_them():
    state: dict = {}
    first, second = (batch_of(6, state=state).uniform(1, stream="a") for _ in range(2))
    assert not first.equal(second) and len(set(first.flatten().tolist())) == 6 and state == {"draws": 2}
    with torch.no_grad():
        batch_of(6, state=state).uniform(1, stream="a")
    assert state == {"draws": 2}  # validation moves nothing


def test_ids_of_another_number_are_refused():
    with pytest.raises(InputError, match=r"PairInfo.ids has shape \(2,\), expected \(3,\)"):
        batch = batch_of(3)
        batch.pairs.ids = batch.pairs.draw = torch.arange(2)
        batch.uniform(1, stream="a")


def known(count: int, draw: int = 0) -> PairInfo:
    return PairInfo(ids=torch.arange(count) * 977, draw=torch.full((count,), draw))


def test_skipping_keeps_the_expectation_over_draws():
    """And nothing is handed on from batch to batch, so that ranks and resumed runs need not agree on it."""
    errors = random_errors(np.random.default_rng(0), 200, 1)
    objective = build_objective("dpo", beta=20000.0, saturation_skip={"threshold": 8.0, "keep": 0.25})
    found = [objective(to_torch(errors), known(200, d)).stats["saturation_skip/weight"] for d in range(400)]
    weights, saturated = torch.stack(found), torch.as_tensor(10000 * errors.m > 8)
    assert 20 < saturated.sum() < 180
    assert (weights[:, ~saturated] == 1).all()
    assert set(weights[:, saturated].unique().tolist()) == {0.0, 4.0}
    assert weights[:, saturated].mean().sub(1).abs() < 0.05
    spread = weights[:, saturated].mean(0).sub(1).abs()
    assert spread.max() < 5 * (3 / 400) ** 0.5  # each pair by itself, too: the weights' variance is 3
    assert objective.state == {}


@pytest.mark.parametrize(
    ("name", "options"), [("sgdpo", {"subset": 0.5}), ("dpo", {"saturation_skip": {"threshold": -1e9}})]
)
def test_a_loss_by_chance_is_the_pairs_own(name, options):
    """A batch split in two and turned round."""
    errors, info = to_torch(random_errors(np.random.default_rng(0), 6, 4)), known(6)
    objective = build_objective(name, beta=500.0, **options)
    whole = objective(errors, info).per_group
    for part in ([5, 4, 3, 2], [0, 1]):
        taken = {key: value[part] for key, value in vars(errors).items() if value is not None}
        own = PairInfo(ids=info.ids[part], draw=info.draw[part])
        torch.testing.assert_close(objective(PairErrors(**taken), own).per_group, whole[part])
    assert not objective(errors, known(6, draw=1)).per_group.allclose(whole)
