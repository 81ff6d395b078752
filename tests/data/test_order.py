"""The order of pairs: a pure function in which every pair comes once an epoch, whatever the ranks and buckets."""

import itertools
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.data.visits.batches import StepBatches
from pgdpo.data.visits.mixture import Mixture, dealt
from pgdpo.data.visits.order import Order
from pgdpo.messages.errors import InputError

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
    order = Order(buckets, micro_batch=micro, seed=seed)
    groups = [order.micro_batch(number) for number in range(-(-epochs * pairs // micro))]
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
    alone = Order([range(length)], micro_batch=1, seed=seed)
    items = [alone.micro_batch(epoch * length + i)[0] for i in range(length)]
    assert sorted(index for index, _ in items) == list(range(length))
    assert {draw for _, draw in items} == {epoch}
    grouped = Order([range(length)], micro_batch=micro, seed=seed)
    assert [item for g in range(30) for item in grouped.micro_batch(g)] == [
        alone.micro_batch(i)[0] for i in range(30 * micro)
    ]


def test_epochs_seeds_and_buckets_are_shuffled_differently():
    def order(seed, epoch):
        return tuple(
            Order([range(50)], micro_batch=1, seed=seed).micro_batch(epoch * 50 + i)[0][0] for i in range(50)
        )

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
    both = Order([range(50), range(50, 100)], micro_batch=1, seed=0)
    first = [both.micro_batch(i)[0][0] for i in range(100)]
    low, high = [i for i in first if i < 50], [i - 50 for i in first if i >= 50]
    assert sorted(low) == sorted(high) and low != high
    assert not all(a < 50 for a in first[:50])  # the buckets take turns


@settings(deadline=None, max_examples=40)
@given(SIZES, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(0, 9))
def test_a_step_holds_the_same_pairs_on_any_number_of_ranks_and_from_any_start(sizes, world, micro, start):
    steps, groups = 3, 8 // micro

    def of_rank(rank: int, world: int, first: int) -> list[list]:
        order = Order(buckets_of(sizes), micro_batch=micro, seed=1)
        batches = StepBatches(
            order, micro_batches=groups, rank=rank, world=world, steps=range(first, start + steps)
        )
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
    order = Order([range(40), range(40, 100), range(100, 130)], micro_batch=2, seed=3)
    ranks = [
        list(StepBatches(order, micro_batches=8, rank=rank, world=2, steps=range(30))) for rank in range(2)
    ]
    bucket = lambda group: (group[0][0] >= 40) + (group[0][0] >= 100)  # noqa: E731
    for step in range(30):
        pairs = [(bucket(ranks[0][k]), bucket(ranks[1][k])) for k in range(4 * step, 4 * step + 4)]
        assert sum(first != second for first, second in pairs) <= 2


def test_repeated_draws():
    order = Order([range(3)], micro_batch=3, seed=0)
    batches = StepBatches(order, micro_batches=1, rank=0, world=1, steps=range(5), draws=2)
    assert [{draw for _, draw in batch} for batch in batches] == [{0}, {1}, {0}, {1}, {0}]


# --- manifests in fixed shares ----------------------------------------------------------------------------------------


def in_turn(weights):
    """Which weight each position belongs to, without end, by an accumulator at each halving: `dealt`, slowly."""
    if len(weights) == 1:
        yield from itertools.repeat(0)
    middle = len(weights) // 2
    sides = (in_turn(weights[:middle]), in_turn(weights[middle:]))
    part, due = Fraction(sum(weights[:middle]), sum(weights) or 1), Fraction(1, 2)
    while True:
        due += part
        if due >= 1:
            due -= 1
            yield next(sides[0])
        else:
            yield middle + next(sides[1])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6).filter(any))
def test_positions_are_dealt_as_by_an_accumulator_and_each_has_its_part(weights):
    found = list(itertools.islice(in_turn(weights), 200))
    counts = Counter()
    for position, which in enumerate(found):
        assert dealt(position, weights) == (which, counts[which])
        counts[which] += 1
        for other, weight in enumerate(weights):
            due = Fraction(weight, sum(weights)) * (position + 1)
            assert abs(counts[other] - due) <= Fraction(halvings(weights), 2)


def halvings(things) -> int:
    return (len(things) - 1).bit_length()


@st.composite
def mixtures(draw):
    """(buckets of indexes, name of every pair, shares): sizes by bucket and manifest, shares that add up to 1."""
    names = "abcd"[: draw(st.integers(2, 4))]
    sizes = draw(
        st.lists(st.lists(st.integers(0, 12), min_size=len(names), max_size=len(names)), min_size=1, max_size=3)
        .filter(lambda rows: all(any(column) for column in zip(*rows, strict=True)))
    )  # fmt: skip
    counted = [(bucket, zip(names, row, strict=True)) for bucket, row in enumerate(sizes)]
    cells = [(bucket, name) for bucket, row in counted for name, count in row for _ in range(count)]
    cells = draw(st.permutations(cells))
    parts = draw(st.lists(st.integers(1, 50), min_size=len(names), max_size=len(names)))
    shares = {name: Fraction(part, sum(parts)) for name, part in zip(names, parts, strict=True)}
    buckets = [[i for i, (bucket, _) in enumerate(cells) if bucket == number] for number in range(len(sizes))]
    return buckets, [name for _, name in cells], shares


@settings(deadline=None, max_examples=60)
@given(mixtures(), st.integers(1, 4), st.integers(0, 2**40), st.integers(0, 40), st.integers(1, 40))
def test_manifests_have_their_shares_in_every_window_and_each_is_passed_whole(
    mixture, group, seed, start, length
):
    buckets, sources, shares = mixture
    order = Mixture(buckets, sources=sources, shares=shares, micro_batch=group, seed=seed)
    groups = [order.micro_batch(number) for number in range(start + length)]
    filled = [set(bucket) for bucket in buckets if bucket]
    for number, items in enumerate(groups):
        assert len(items) == group and {index for index, _ in items} <= filled[order.bucket(number)]
    # None is lost or repeated in a pass of its manifest and bucket: the slow oracle keeps what is left of each pass.
    left, passes = {}, Counter()
    for number, items in enumerate(groups):
        for index, draw in items:
            cell = order.bucket(number), sources[index]
            if not left.get(cell):
                left[cell] = {i for i in filled[cell[0]] if sources[i] == cell[1]}
                passes[cell] += 1
            left[cell].remove(index)
            assert draw == passes[cell] - 1
    # In every window the pairs of a manifest are what was asked, to within a few: more buckets are more lines to fill.
    window = Counter(sources[index] for items in groups[start:] for index, _ in items)
    slack = len(filled) * halvings(shares) + group * halvings(filled) * len(filled)
    for name, share in shares.items():
        assert abs(window[name] - share * group * length) <= slack
    if len(filled) == 1:
        assert all(abs(window[name] - shares[name] * group * length) <= halvings(shares) for name in shares)


@settings(deadline=None, max_examples=25)
@given(mixtures(), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(0, 9))
def test_a_step_of_a_mixture_is_the_same_on_any_number_of_ranks_and_from_any_start(
    mixture, world, micro, start
):
    buckets, sources, shares = mixture
    steps, groups = 3, 8 // micro

    def of_rank(rank: int, world: int, first: int) -> list[list]:
        order = Mixture(buckets, sources=sources, shares=shares, micro_batch=micro, seed=1)
        return list(
            StepBatches(
                order, micro_batches=groups, rank=rank, world=world, steps=range(first, start + steps)
            )
        )

    alone = of_rank(0, 1, 0)[start * groups :]
    resumed = [of_rank(rank, world, start) for rank in range(world)]
    part = groups // world
    for step in range(steps):
        found = [items for rank in resumed for items in rank[step * part : (step + 1) * part]]
        assert sorted(found) == sorted(alone[step * groups : (step + 1) * groups])


def test_a_small_manifest_with_a_large_share_comes_again_and_its_draws_count_on():
    sources = ["large"] * 90 + ["small"] * 10
    shares = {"large": Fraction(1, 2), "small": Fraction(1, 2)}
    order = Mixture([range(100)], sources=sources, shares=shares, micro_batch=4, seed=0)
    visits = Counter(item for number in range(45) for item in order.micro_batch(number))  # 180 pairs
    assert set(visits.values()) == {1}
    assert {draw for index, draw in visits if index < 90} == {0}
    assert {draw for index, draw in visits if index >= 90} == set(range(9))


def test_stages_are_parts_of_each_manifests_own_pass():
    sources, stages = ["a"] * 6 + ["b"] * 3, [0, 1] * 4 + [0]
    shares = {"a": Fraction(1, 2), "b": Fraction(1, 2)}
    order = Mixture([range(9)], sources=sources, shares=shares, micro_batch=2, seed=3, stages=stages)
    visits = [item for number in range(6) for item in order.micro_batch(number)]
    for name, length in (("a", 6), ("b", 3)):
        own = [stages[index] for index, _ in visits if sources[index] == name]
        assert own[:length] == sorted(own[:length]) and own[-length:] == sorted(own[-length:])


def test_a_manifest_without_pairs_can_have_no_share():
    with pytest.raises(
        InputError, match="no pair of the manifest `b` is left to train on, and its share is 0.25"
    ):
        Mixture(
            [[0]], sources=["a"], shares={"a": Fraction(3, 4), "b": Fraction(1, 4)}, micro_batch=1, seed=0
        )
