"""Model family x way to hold the reference x ZeRO stage x LoRA or full weights, on two ranks.

A cell is named `reference-weights-stage`. The ordinary run takes a slice on Wan, the slow one every cell of every
family; what cannot be combined is refused by name, and is listed here.
"""

import itertools

import numpy as np
import pytest

from pgdpo.errors import InputError
from pgdpo.models import FAMILIES
from tests.models.tiny_pipelines import Road, save_tiny_cogvideox, save_tiny_hunyuan_video, save_tiny_ltx
from tests.worlds import launch_commands, losses, run_pgdpo

REFERENCES = ("adapter", "frozen", "cached", "ema", "synced")
WEIGHTS = {  # small steps: Adam magnifies the last bits of a gradient that is nearly 0
    "lora": ["train.learning_rate=1e-4"],
    "full": ["model.adapter=null", "train.learning_rate=1e-5"],
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
SLICE = [
    *("adapter-lora-3", "frozen-lora-3", "cached-lora-3", "ema-lora-3"),
    *("frozen-full-3", "split-full-3", "synced-full-3"),
]


def command(config, cell: str) -> list[str]:
    reference, weights, stage = cell.split("-")
    moving = ["train.reference_ema_alpha=0.25", "train.reference_sync_every=2"]
    way = ["train.pair_batching=split"] if reference == "split" else [f"train.reference={reference}"]
    return [
        *(
            "train",
            str(config),
            f"name={cell}",
            f"train.zero_stage={stage}",
            *way,
            *moving,
            *WEIGHTS[weights],
        ),
        *("train.micro_batch_pairs=1", "train.cached_draws=1", "train.steps=3"),
    ]


def relative(first, second) -> float:
    first, second = np.array(first), np.array(second)
    return float(np.abs((first - second) / first).max())


def run_cells(config, cells: list[str], timeout: float) -> dict[str, list[float]]:
    """Losses of every cell, after the errors for the cached ones were computed by the same two ranks."""
    errors = [
        "reference",
        str(config),
        "train.zero_stage=3",
        "train.cached_draws=1",
        "train.micro_batch_pairs=1",
    ]
    launch_commands([errors, *(command(config, cell) for cell in cells)], ranks=2, timeout=timeout)
    return {cell: losses(config.parent / "out", cell) for cell in cells}


def agree(found: dict[str, list[float]], cells: list[str], tolerance: float) -> None:
    first, *others = cells
    assert len(set(found[first])) > 1  # something was learned; a synced reference starts from ln 2 again
    for cell in others:
        assert relative(found[first], found[cell]) <= tolerance, f"{cell} against {first}"


def test_a_slice_of_the_matrix_on_two_ranks(config_file):
    found = run_cells(config_file, SLICE, timeout=280)
    for cell in ("ema-lora-0", "synced-full-0"):  # on one rank
        run_pgdpo(*command(config_file, cell))
        found[cell] = losses(config_file.parent / "out", cell)
    agree(found, ["adapter-lora-3", "frozen-lora-3", "cached-lora-3"], 1e-6)
    agree(found, ["frozen-full-3", "split-full-3"], 1e-5)
    agree(found, ["ema-lora-3", "ema-lora-0"], 1e-5)
    agree(found, ["synced-full-3", "synced-full-0"], 1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_of_the_matrix(family, world, config_file, tmp_path):
    config = config_file
    if family != "wan":
        save, size = PIPELINES[family]
        config = Road(family, save(tmp_path / "pipeline"), world, tmp_path, size).config()
        run_pgdpo("prepare", config)
    found = run_cells(config, CELLS, timeout=1800)
    for weights in WEIGHTS:
        for alike in (("adapter", "frozen", "cached"), ("ema",), ("synced",)):
            cells = [cell for cell in CELLS if cell.split("-")[0] in alike and cell.split("-")[1] == weights]
            agree(found, cells, 1e-5)
            for stage in STAGES:
                agree(found, [cell for cell in cells if cell.endswith(f"-{stage}")], 1e-6)


@pytest.mark.parametrize(("reference", "weights"), REFUSED)
def test_what_cannot_be_combined_is_refused_by_name(config_file, reference, weights):
    with pytest.raises(InputError, match=REFUSED[reference, weights]):
        run_pgdpo(*command(config_file, f"{reference}-{weights}-0"))
