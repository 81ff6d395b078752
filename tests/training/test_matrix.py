"""Model family x way to hold the reference x ZeRO stage x LoRA or full weights, on two ranks.

A cell is named `reference-weights-stage`. The ordinary run takes a slice on Wan, the slow one every cell of every
family; what cannot be combined is refused by name, and is listed here. `python -m benchmarks.matrix` writes the slow
one's losses down.

All cells of a family run in one pair of processes, and without Triton's interpreter, in which the kernels take more
time than all the rest; tests/training/test_parallel.py has it in both ranks.
"""

import itertools

import numpy as np
import pytest

from pgdpo.errors import InputError
from pgdpo.models import FAMILIES
from tests.models.tiny_pipelines import Road, save_tiny_cogvideox, save_tiny_hunyuan_video, save_tiny_ltx
from tests.ranks import Ranks
from tests.worlds import losses, run_pgdpo

REFERENCES = ("adapter", "frozen", "cached", "ema", "synced")
WEIGHTS = {  # small steps: Adam magnifies the last bits of a gradient that is nearly 0
    "lora": ["train.learning_rate=1e-4"],
    "full": ["model.adapter=null", "train.learning_rate=3e-6"],
}
STAGES = (0, 1, 2, 3)
REFUSED = {("adapter", "full"): "train.reference is `adapter` but model.adapter is empty"}
PIPELINES = {  # how its tiny pipeline is saved, and (frames, height, width) of its clips
    "hunyuan_video": (save_tiny_hunyuan_video, (9, 32, 48)),
    "cogvideox": (lambda folder: save_tiny_cogvideox(folder, rotary=True), (9, 32, 48)),
    "ltx": (save_tiny_ltx, (9, 64, 96)),
}
CELLS = [
    f"{reference}-{weights}-{stage}"
    for reference, weights, stage in itertools.product(REFERENCES, WEIGHTS, STAGES)
    if (reference, weights) not in REFUSED
]
ALIKE = (("adapter", "frozen", "cached"), ("ema",), ("synced",))  # the same reference, held in different ways
SLICE = [
    *("adapter-lora-3", "frozen-lora-3", "cached-lora-3"),
    *("frozen-full-3", "split-full-3"),
]
DRAWS = "train.cached_draws=3"  # one a step: few pairs may come again in each
SMALL = "train.micro_batch_pairs=1"


def command(config, cell: str) -> list[str]:
    reference, weights, stage = cell.split("-")
    way = ["train.pair_batching=split"] if reference == "split" else [f"train.reference={reference}"]
    return [
        *("train", str(config), f"name={cell}", "train.steps=3", SMALL, DRAWS),
        *("train.reference_ema_alpha=0.25", "train.reference_sync_every=2"),
        *(f"train.zero_stage={stage}", *way, *WEIGHTS[weights]),
    ]


def run_cells(ranks: Ranks, config, cells: list[str], timeout: float) -> dict[str, list[float]]:
    """Losses of every cell, after the errors for the cached ones were computed by the same two ranks."""
    errors = ["reference", str(config), "train.zero_stage=3", SMALL, DRAWS]
    commands = [errors, *(command(config, cell) for cell in cells)]
    ranks.run(*commands, timeout=timeout)
    return {cell: losses(config.parent / "out", cell) for cell in cells}


def difference(found: dict[str, list[float]], cells: list[str]) -> float:
    """The largest relative difference of any loss from the first cell's."""
    first, *others = (np.array(found[cell]) for cell in cells)
    assert len(set(first)) > 1  # something was learned; a synced reference starts from ln 2 again
    return float(max((np.abs(other - first) / first).max() for other in others))


@pytest.mark.timeout(900)  # many runs, minutes where others use the cores too
def test_a_slice_of_the_matrix_on_two_ranks(config_file, ranks):
    found = run_cells(ranks, config_file, SLICE, timeout=800)
    assert difference(found, ["adapter-lora-3", "frozen-lora-3", "cached-lora-3"]) <= 1e-6
    assert difference(found, ["frozen-full-3", "split-full-3"]) <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_of_the_matrix(family, world, config_file, tmp_path, figures, ranks):
    config = config_file
    if family != "wan":
        save, size = PIPELINES[family]
        config = Road(family, save(tmp_path / "pipeline"), world, tmp_path, size).config()
        run_pgdpo("prepare", config)
    found = run_cells(ranks, config, CELLS, timeout=3600)
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
