"""Model family x way to hold the reference x ZeRO stage x LoRA or full weights, on two ranks.

A cell is named `reference-weights-stage`. The ordinary run takes a slice on Wan, the slow one every cell of every
family; what cannot be combined is refused by name, and is listed here. `python -m benchmarks.runs.matrix` writes the
slow one's losses down.

All cells of a family run in one pair of processes, and without Triton's interpreter, in which the kernels take more
time than all the rest; tests/engine/test_parallel.py has it in both ranks.
"""

import itertools

import numpy as np
import pytest

from pgdpo.messages.errors import InputError
from tests.engine import gathers
from tests.models.families import FAMILIES
from tests.models.road import Road
from tests.ranks import Ranks
from tests.worlds import losses, run_pgdpo

REFERENCES = ("adapter", "frozen", "cached", "ema", "synced")
WEIGHTS = {  # small steps: Adam magnifies the last bits of a gradient that is nearly 0
    "lora": ["train.learning_rate=1e-4"],
    "full": ["model.adapter=null", "train.learning_rate=3e-6"],
}
STAGES = (0, 1, 2, 3)
REFUSED = {("adapter", "full"): "train.reference is `adapter` but model.adapter is empty"}
CELLS = [
    f"{reference}-{weights}-{stage}"
    for reference, weights, stage in itertools.product(REFERENCES, WEIGHTS, STAGES)
    if (reference, weights) not in REFUSED
]
ALIKE = (("adapter", "frozen", "cached"), ("ema",), ("synced",))  # the same reference, held in different ways
SLICE = [
    *("adapter-lora-3", "frozen-lora-3"),
    *("frozen-full-3", "split-full-3"),
    *("wide-full-3", "bf16-full-3"),
]
BF16 = ["train.precision=bf16"]
WAYS = {
    "split": ["train.group_batching=split"],
    "bf16": BF16,
    "wide": BF16,
}  # instead of a reference, in the slice
WITHOUT = {"wide-full-3": "gather_in_bf16"}  # what is switched off in a cell
DRAWS = "train.cached_draws=3"  # one a step: few pairs may come again in each
SMALL = "train.micro_batch_groups=1"
# Of these small models all weights are small enough to be held whole beside their shards.
SHARDED = "train.deepspeed.zero_optimization.stage3_param_persistence_threshold=0"


def command(config, cell: str) -> list[str]:
    reference, weights, stage = cell.split("-")
    way = WAYS.get(reference, [f"train.reference={reference}"])
    return [
        *("train", str(config), f"name={cell}", "train.steps=3", SMALL, DRAWS),
        *("train.reference_ema_alpha=0.25", "train.reference_sync_every=2"),
        *(f"train.zero_stage={stage}", *([SHARDED] if stage == "3" else []), *way, *WEIGHTS[weights]),
    ]


def run_cells(
    ranks: Ranks, config, cells: list[str], timeout: float
) -> tuple[dict[str, list[float]], dict[str, dict]]:
    """(losses of every cell, what each gathered), after the errors for the cached ones were computed by the same two
    ranks."""
    errors = ["reference", str(config), "train.zero_stage=3", SMALL, DRAWS]
    commands = {"reference": errors} if any(cell.startswith("cached") for cell in cells) else {}
    commands |= {cell: command(config, cell) for cell in cells}
    gathered, _ = ranks.call(gathers.count, commands, WITHOUT, timeout=timeout)
    return {cell: losses(config.parent / "out", cell) for cell in cells}, gathered


def difference(found: dict[str, list[float]], cells: list[str]) -> float:
    """The largest relative difference of any loss from the first cell's."""
    first, *others = (np.array(found[cell]) for cell in cells)
    assert len(set(first)) > 1  # something was learned; a synced reference starts from ln 2 again
    return float(max((np.abs(other - first) / first).max() for other in others))


@pytest.mark.timeout(900)  # many runs, minutes where others use the cores too
def test_a_slice_of_the_matrix_on_two_ranks(config_file, ranks):
    found, gathered = run_cells(ranks, config_file, SLICE, timeout=800)
    assert difference(found, ["adapter-lora-3", "frozen-lora-3"]) <= 1e-6
    assert difference(found, ["frozen-full-3", "split-full-3"]) <= 1e-5
    # Without a trace are the first forwards of each kind. With `split` that are three, and once more the policy's
    # without gradients, whose trace is dropped at its first with them.
    lost = {"adapter-lora-3": 2, "frozen-lora-3": 2, "bf16-full-3": 2, "split-full-3": 4}
    assert {cell: gathered[cell]["forwards"] - gathered[cell]["found"] for cell in lost} == lost
    assert all(gathered[cell]["by_trace"] > 0.8 * gathered[cell]["modules"] for cell in lost)
    assert difference(found, ["wide-full-3", "bf16-full-3"]) == 0
    wide, narrow = (gathered[cell]["gathered"] for cell in ("wide-full-3", "bf16-full-3"))
    assert set(wide) == {"float32"} and sum(narrow.values()) < 0.6 * wide["float32"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_of_the_matrix(family, saved, world, config_file, tmp_path, figures, ranks):
    config = config_file
    if family != "wan":
        kind = FAMILIES[family]
        config = Road(kind, saved(kind.save), world, tmp_path).config()
        run_pgdpo("prepare", config)
    found, _ = run_cells(ranks, config, CELLS, timeout=3600)
    stages, ways = (
        {},
        {},
    )  # largest differences over the ZeRO stages, and among ways to hold a reference at one
    for weights, alike in itertools.product(WEIGHTS, ALIKE):
        held = [way for way in alike if (way, weights) not in REFUSED]
        at = {stage: [f"{way}-{weights}-{stage}" for way in held] for stage in STAGES}
        name = f"{' = '.join(held)}, {weights}"
        stages[name] = difference(found, [cell for cells in at.values() for cell in cells])
        if len(held) > 1:
            ways[name] = max(difference(found, cells) for cells in at.values())
    figures("families", {family: {"losses": found, "over_stages": stages, "over_references": ways}})
    assert max(stages.values()) <= 1e-5, stages
    assert max(ways.values()) <= 1e-6, ways


@pytest.mark.parametrize(("reference", "weights"), REFUSED)
def test_what_cannot_be_combined_is_refused_by_name(config_file, reference, weights):
    with pytest.raises(InputError, match=REFUSED[reference, weights]):
        run_pgdpo(*command(config_file, f"{reference}-{weights}-0"))
