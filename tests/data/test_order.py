"""The order of pairs: a pure function in which every pair comes once an epoch, whatever the ranks and buckets."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.data.order import Order, StepBatches

pytestmark = pytest.mark.quick

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any)


def buckets_of(sizes: list[int]) -> list[list[int]]:
    """Bucket sizes -> indexes, dealt out so that a bucket's are not neighbours."""
    names = [bucket for bucket, size in enumerate(sizes) for _ in range(size)]
    names.sort(key=lambda bucket: (hash((bucket, 7)) % 5, bucket))
    return [[i for i, name in enumerate(names) if name == bucket] for bucket in range(len(sizes))]


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 5), st.integers(0, 2**40), st.integers(2, 6))
def test_every_pair_once_for_every_visit_and_groups_of_one_bucket(sizes, micro, seed, epochs):
    buckets, pairs = buckets_of(sizes), sum(sizes)
    order = Order(buckets, group=micro, seed=seed)
    groups = [order.group(number) for number in range(-(-epochs * pairs // micro))]
    of = {index: bucket for bucket, members in enumerate(b for b in buckets if b) for index in members}
    for number, group in enumerate(groups):
        assert len(group) == micro
        assert {of[index] for index, _ in group} == {order.bucket(number)}
    visits = Counter(itertools.chain(*groups))
    assert set(visits.values()) == {1}  # no (pair, visit) is repeated
    for index in range(pairs):  # nor lost: visits are counted without gaps ...
        draws = sorted(draw for i, draw in visits if i == index)
        assert draws == list(range(len(draws)))
        # ... and no pair is more than a carried rest behind: under one group a bucket.
        assert epochs - 1 - micro * len(sizes) // min(size for size in sizes if size) <= len(draws)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 5), st.integers(1, 4))
def test_with_one_bucket_an_epoch_is_a_permutation_and_groups_only_cut_it(length, seed, epoch, micro):
    alone = Order([range(length)], group=1, seed=seed)
    items = [alone.group(epoch * length + i)[0] for i in range(length)]
    assert sorted(index for index, _ in items) == list(range(length))
    assert {draw for _, draw in items} == {epoch}
    grouped = Order([range(length)], group=micro, seed=seed)
    assert [item for g in range(30) for item in grouped.group(g)] == [
        alone.group(i)[0] for i in range(30 * micro)
    ]


def test_epochs_seeds_and_buckets_are_shuffled_differently():
    def order(seed, epoch):
        return tuple(Order([range(50)], group=1, seed=seed).group(epoch * 50 + i)[0][0] for i in range(50))

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
    both = Order([range(50), range(50, 100)], group=1, seed=0)
    first = [both.group(i)[0][0] for i in range(100)]
    low, high = [i for i in first if i < 50], [i - 50 for i in first if i >= 50]
    assert sorted(low) == sorted(high) and low != high
    assert not all(a < 50 for a in first[:50])  # the buckets take turns


@settings(deadline=None, max_examples=40)
@given(SIZES, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(0, 9))
def test_a_step_holds_the_same_pairs_on_any_number_of_ranks_and_from_any_start(sizes, world, micro, start):
    steps, groups = 3, 8 // micro

    def of_rank(rank: int, world: int, first: int) -> list[list]:
        order = Order(buckets_of(sizes), group=micro, seed=1)
        batches = StepBatches(order, groups=groups, rank=rank, world=world, steps=range(first, start + steps))
        listed = list(batches)
        assert len(listed) == len(batches)
        return listed

    alone = of_rank(0, 1, 0)[start * groups :]
    resumed = [of_rank(rank, world, start) for rank in range(world)]
    share = groups // world
    for step in range(steps):
        wanted = alone[step * groups : (step + 1) * groups]
        found = [group for rank in resumed for group in rank[step * share : (step + 1) * share]]
        assert sorted(found) == sorted(wanted)
    if sum(size > 0 for size in sizes) == 1:  # ranks hold neighbouring parts
        step = [group for rank in resumed for group in rank[:share]]
        assert step == alone[:groups]


def test_ranks_work_on_the_same_bucket_at_a_time():
    """A step of 2 ranks x 4 groups: they differ at no more places than there are borders between buckets."""
    order = Order([range(40), range(40, 100), range(100, 130)], group=2, seed=3)
    ranks = [list(StepBatches(order, groups=8, rank=rank, world=2, steps=range(30))) for rank in range(2)]
    bucket = lambda group: (group[0][0] >= 40) + (group[0][0] >= 100)  # noqa: E731
    for step in range(30):
        pairs = [(bucket(ranks[0][k]), bucket(ranks[1][k])) for k in range(4 * step, 4 * step + 4)]
        assert sum(first != second for first, second in pairs) <= 2


def test_repeated_draws():
    order = Order([range(3)], group=3, seed=0)
    batches = StepBatches(order, groups=1, rank=0, world=1, steps=range(5), draws=2)
    assert [{draw for _, draw in batch} for batch in batches] == [{0}, {1}, {0}, {1}, {0}]
