"""Lists in the order of a run: each whole in its micro-batch, with one timestep and noise, every clip once an epoch."""

import json
from collections import Counter

import pytest

from benchmarks.data import group_order
from benchmarks.data.group_order import FILE, LISTS, MICRO_BATCH, ROADS, figures, sizes_of
from pgdpo.data.prepared import PreparedPairs, pair_hash
from pgdpo.data.visits.batches import StepBatches
from pgdpo.data.visits.loading import collate
from tests.data.test_prepare_groups import group, save
from tests.worlds import run_pgdpo, write_config

RESUMED = ["2, then 3", "3, then 1"]
CUT, APART = "lists cut or mixed", "clips with another list's timestep and noise"
ONCE, TWICE = "clips not visited once in the epoch", "clips visited twice after it"
OTHER = "steps of other lists or draws than one rank's"


def wrong(found) -> dict[str, int]:
    """What is wrong on any road, and how often."""
    total = Counter()
    for road in found["ranks"].values():
        total.update(road["violations"])
    return {name: count for name, count in total.items() if count}


def test_25000_lists_of_4_on_three_numbers_of_ranks():
    found = figures(sizes_of("4", LISTS), RESUMED)
    assert found["clips"] == 4 * LISTS == 100_000 and found["buckets"] == 2 and found["steps"] > 500
    assert wrong(found) == {}


@pytest.mark.quick
def test_ragged_lists():
    found = figures(sizes_of("1 to 6", 3000), epochs=1.5)
    assert found["buckets"] == 12 and found["ranks"].keys() == ROADS.keys()
    assert wrong(found) == {}


def test_the_committed_figures_are_of_that_many_lists_without_one_that_is_wrong():
    for found in json.loads(FILE.read_text())["clips in a list"].values():
        assert found["lists"] == LISTS and found["ranks"].keys() == ROADS.keys() and wrong(found) == {}


# --- each is seen to fail ---------------------------------------------------------------------------------------------


def changed(change):
    """`collate` with something wrong in its batches."""

    def tampered(items):
        batch = collate(items)
        change(batch)
        return batch

    return group_order, "collate", tampered


def list_by_list(batch):
    members = batch["latents"].unflatten(0, (-1, MICRO_BATCH))
    batch["latents"] = members.transpose(0, 1).flatten(0, 1)


def one_clip_less(batch):
    batch["latents"] = batch["latents"][:-MICRO_BATCH]


def rolled(batch):
    member = batch["latents"].unflatten(0, (-1, MICRO_BATCH))
    member[-1] = member[-1].roll(1, 0)


def others_keys(batch):
    batch["pair_ids"] = batch["pair_ids"].roll(1)


def no_draw(batch):
    batch["draw"].zero_()


def with_repeats(groups, seed, epoch, stream, stages=None):
    return group_order.np.random.default_rng([seed, epoch, stream]).integers(0, len(groups), len(groups))


def a_step_late(self, step):
    late = step + (self.steps.start > 0)
    return [number for number in self._all(late)][self.rank :: self.world]


def the_same_on_all(self, step):
    return self._all(step)[: self.micro_batches // self.world]


VISITS = "pgdpo.data.visits"
DEFECTS = {
    "list by list": (*changed(list_by_list), {CUT, APART}),
    "a clip is left out": (*changed(one_clip_less), {CUT, ONCE}),
    "a clip stands with others": (*changed(rolled), {CUT, APART}),
    "others' keys": (*changed(others_keys), {APART}),
    "draws are not counted": (*changed(no_draw), {ONCE}),
    "drawn with repeats": (f"{VISITS}.order.shuffled", None, with_repeats, {ONCE, TWICE}),
    "resumed a step late": (StepBatches, "_mine", a_step_late, {ONCE, OTHER}),
    "ranks read the same": (StepBatches, "_mine", the_same_on_all, {ONCE, OTHER}),
}


@pytest.mark.quick
@pytest.mark.parametrize("defect", DEFECTS)
def test_it_is_seen(monkeypatch, defect):
    *target, replaced, found = DEFECTS[defect]
    monkeypatch.setattr(*[part for part in target if part is not None], replaced)
    assert found <= wrong(figures(sizes_of("4", 600), RESUMED, epochs=1.5)).keys()


# --- a prepared folder ------------------------------------------------------------------------------------------------

SIZES = (3, 1, 2, 3, 2, 3)


@pytest.fixture
def prepared(tmp_path, tiny_wan, monkeypatch):
    """Groups of `SIZES`."""
    monkeypatch.chdir(tmp_path)
    rows = [group(tmp_path / "data", number, size) for number, size in enumerate(SIZES)]
    save(rows)
    data = {"train": "data/train.jsonl", "held_out": None, "num_frames": 4, "pairs_per_shard": 4}
    write_config(tmp_path / "config.yaml", "out", tiny_wan, data=data)
    run_pgdpo("prepare", "config.yaml")
    return PreparedPairs(tmp_path / "out/prepared/train")


def test_a_prepared_folder_has_a_bucket_for_each_number_of_samples(prepared):
    assert prepared.buckets == [[1], [2, 4], [0, 3, 5]] and prepared.group_sizes == [1, 2, 3]
    order = prepared.order(micro_batch=2, seed=0)
    visits = Counter()
    for number in range(9):  # three epochs
        items = order.micro_batch(number)
        batch = collate([prepared[item] for item in items])
        size = prepared.group_sizes[order.bucket(number)]
        assert [SIZES[index] for index, _ in items] == [size, size]
        assert batch["groups"] == size and len(batch["latents"]) == 2 * size
        assert batch["pair_ids"].tolist() == [pair_hash(f"g{index}") for index, _ in items]
        for place, (index, draw) in enumerate(items):
            visits[index, draw] += 1
            for member, sample in enumerate(prepared[index, draw]["samples"]):
                assert batch["latents"][2 * member + place].equal(sample)
    assert set(visits.values()) == {1}
    assert {index for index, draw in visits if draw == 0} == set(range(len(SIZES)))


def test_of_groups_that_are_held_by_their_ends_all_are_of_two(prepared):
    whole = [prepared[index, 0]["samples"] for index in range(len(SIZES))]
    assert len(prepared.latent_shapes) == 3
    prepared.keep_ends()
    assert prepared.buckets == [[1], [0, 2, 3, 4, 5]] and prepared.group_sizes == [1, 2]
    assert len(prepared.latent_shapes) == 2
    for index, samples in enumerate(whole):
        ends = [samples[-1], samples[0]] if len(samples) > 2 else samples  # the last is the best
        assert all(
            ours.equal(theirs) for ours, theirs in zip(prepared[index, 0]["samples"], ends, strict=True)
        )
