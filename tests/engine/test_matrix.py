"""Ways to train a model on two ranks: a slice on the toy's Wan; with `-m slow` every way of every kind of pipeline.

The ways are those of `ways.py`; `python -m benchmarks.runs.matrix` runs them too and writes down what they give. What
cannot be combined is refused by name. All runs of the slice go one after another in one pair of processes, and without
Triton's interpreter, in which the kernels take more time than all the rest.
"""

import dataclasses

import pytest

from pgdpo.messages.errors import InputError
from tests.engine import gathers, ways
from tests.models.families import KINDS
from tests.worlds import losses, run_pgdpo

BF16 = ["train.precision=bf16"]
SLICE = {  # name -> overrides; all under ZeRO-3
    "adapter": ["train.reference=adapter", *ways.WEIGHTS["lora"]],
    "frozen": ["train.reference=frozen", *ways.WEIGHTS["lora"]],
    "full": ["train.reference=frozen", *ways.WEIGHTS["full"]],
    "split": ["train.group_batching=split", *ways.WEIGHTS["full"]],
    "wide": [*BF16, *ways.WEIGHTS["full"]],
    "bf16": [*BF16, *ways.WEIGHTS["full"]],
}
WITHOUT = {"wide": "gather_in_bf16"}  # what is switched off in a run
COMMON = ["train.steps=3", "train.micro_batch_groups=1", "train.zero_stage=3", ways.SHARDED]


@pytest.mark.timeout(900)  # many runs, minutes where others use the cores too
def test_a_slice_of_the_matrix_on_two_ranks(config_file, ranks):
    commands = {
        name: ["train", str(config_file), f"name={name}", *COMMON, *own] for name, own in SLICE.items()
    }
    gathered, _ = ranks.call(gathers.count, commands, WITHOUT, timeout=800)
    found = {name: losses(config_file.parent / "out", name) for name in SLICE}
    assert ways.off(found["adapter"], found["frozen"]) <= 1e-6
    assert ways.off(found["full"], found["split"]) <= 1e-5
    # Without a trace are the first forwards of each kind. With `split` that are three, and once more the policy's
    # without gradients, whose trace is dropped at its first with them.
    lost = {"adapter": 2, "frozen": 2, "bf16": 2, "split": 4}
    assert {name: gathered[name]["forwards"] - gathered[name]["found"] for name in lost} == lost
    assert all(gathered[name]["by_trace"] > 0.8 * gathered[name]["modules"] for name in lost)
    assert ways.off(found["wide"], found["bf16"]) == 0
    wide, narrow = (gathered[name]["gathered"] for name in ("wide", "bf16"))
    assert set(wide) == {"float32"} and sum(narrow.values()) < 0.6 * wide["float32"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_every_way_to_train_has_the_losses_of_the_plainest(name, saved, world, tmp_path, ranks):
    runs = ways.Runs(name, saved(KINDS[name].save), world, tmp_path / "runs", ranks)
    found = {way: runs.losses(way) for way in ways.design() if way.kind == name}
    figures = ways.figures(found)
    assert all(figures[factor] <= ways.LIMITS[factor] for factor in figures), figures


@pytest.mark.parametrize(("reference", "weights"), ways.REFUSED)
def test_what_cannot_be_combined_is_refused_by_name(config_file, reference, weights):
    way = dataclasses.replace(ways.Way("wan 2.1 t2v"), reference=reference, weights=weights)
    with pytest.raises(InputError, match=ways.REFUSED[reference, weights]):
        run_pgdpo("train", config_file, *way.overrides())
