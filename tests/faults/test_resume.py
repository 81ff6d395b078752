"""Faults 5, 6 and 7: stopped and resumed, on other numbers of ranks and at other ZeRO stages, it is the same run."""

import json
import random

import numpy as np
import pytest
import torch

from pgdpo.checkpoints.published import checkpoints_of
from pgdpo.engine.deterministic import _insert, _whole_subtrees
from tests.worlds import losses, metrics, stored


def largest_difference(first: dict, second: dict) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("adapter", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["lora", "full"])
def test_a_checkpoint_goes_from_any_stage_and_ranks_to_any_other(start, fault_config, adapter):
    """Nothing is trained between: what ZeRO-1, 2 and 3 hand back is what stage 0 put in, to the bit."""
    output = fault_config.parent / "out"
    run = ["train", fault_config, "name=moved", "--resume", "train.steps=2", "train.checkpoint_every=2"]
    run += ["train.micro_batch_groups=2"] + (
        [] if adapter else ["model.adapter=null", "train.learning_rate=1e-4"]
    )
    start(*run, ranks=2).succeed()
    first = stored(output / "moved")
    for stage, ranks in ((3, 2), (2, 1), (1, 2), (0, 1)):
        start(*run, f"train.zero_stage={stage}", ranks=ranks, hook="save_once_more").succeed()
        assert checkpoints_of(output / "moved")[-1].name != "step-00000002"
        assert largest_difference(first, stored(output / "moved")) == 0


@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [("deterministic=true", 0.0), pytest.param("zero_stage=2", 2e-6, marks=pytest.mark.slow)],
    ids=["deterministic", "ZeRO-2"],
)
def test_ranks_2_1_2(start, fault_config, tally, mode, tolerance):
    """To the bit in deterministic mode, with clipping at work; else to rounding."""
    output = fault_config.parent / "out"
    common = ["train", fault_config, "--resume", f"train.{mode}"]
    common += ["train.max_grad_norm=0.05"] if tolerance == 0 else ["train.learning_rate=1e-4"]
    start(*common, "name=straight", "train.steps=6").succeed()
    for steps, ranks in ((2, 2), (4, 1), (6, 2)):
        start(*common, "name=moved", f"train.steps={steps}", ranks=ranks).succeed()
    expected, found = np.array(losses(output, "straight")), np.array(losses(output, "moved"))
    difference = float(np.abs((found - expected) / expected).max())
    equal = difference <= tolerance
    if tolerance == 0:
        norms = [[row["gradient_norm"] for row in metrics(output, run)] for run in ("straight", "moved")]
        weights = largest_difference(stored(output / "straight"), stored(output / "moved"))
        equal = equal and weights == 0 and norms[0] == norms[1] and min(norms[0]) > 0.05
    assert equal, difference
    tally(6, 1, len(found) == 6, difference=difference)


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_a_tree_over_any_ranks_gives_the_same_bits(ranks):
    """Six leaves: no power of two, and three ranks hold no whole half of the tree."""
    leaves = (
        torch.randn(6, 1000, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(6)[:, None]
    )
    nodes, per_rank = {}, 6 // ranks
    for rank in range(ranks):
        own = {}
        for leaf in range(rank * per_rank, (rank + 1) * per_rank):
            _insert(own, (0, leaf), leaves[leaf].clone(), 6)
        assert list(own) == _whole_subtrees(range(rank * per_rank, (rank + 1) * per_rank), 6)
        for node, value in own.items():
            _insert(nodes, node, value, 6)
    (total,) = nodes.values()
    assert torch.equal(total, ((leaves[0] + leaves[1]) + (leaves[2] + leaves[3])) + (leaves[4] + leaves[5]))


@pytest.mark.slow
def test_three_ranks_are_one(start, fault_config):
    """A number of micro-batches that is no power of two, on ranks that hold no whole half of the tree."""
    output = fault_config.parent / "out"
    common = [
        "train",
        fault_config,
        "train.deterministic=true",
        "train.global_batch_groups=12",
        "train.steps=2",
    ]
    for ranks in (1, 3):
        start(*common, f"name=ranks{ranks}", ranks=ranks).succeed()
    assert losses(output, "ranks1") == losses(output, "ranks3")
    assert largest_difference(stored(output / "ranks1"), stored(output / "ranks3")) == 0


def kill_at_random(start, config, trials: int) -> int:
    """Trials in which a run that was killed somewhere in a step went on as if nothing had happened."""
    output, chance, survived, steps = config.parent / "out", random.Random(0), 0, 14
    common = [
        "train", config, f"train.steps={steps}", "train.checkpoint_every=3", "train.warmup_steps=8",
        "model.adapter=null", "train.reference=ema", "train.learning_rate=1e-4", "data.workers=1",
    ]  # fmt: skip
    files = {name: config.parent / f"{name}.jsonl" for name in ("straight", "killed")}
    start(*common, "name=straight", hook="write_samples", file=str(files["straight"])).succeed()
    expected = _samples(files["straight"])
    for _ in range(trials):
        after = chance.randrange(6, 2 * steps)  # micro-batches of a rank, two of which are a step
        hook = {"hook": "write_samples", "file": str(files["killed"])}
        codes = start(*common, "--restart", "name=killed", **hook, kill_after=after).wait()
        assert -9 in codes
        start(*common, "--resume", "name=killed", **hook).succeed()
        curves = [
            [(row["loss"], row["learning_rate"]) for row in metrics(output, name)]
            for name in ("straight", "killed")
        ]
        same_samples = all(expected[key] == value for key, value in _samples(files["killed"]).items())
        weights = largest_difference(stored(output / "straight"), stored(output / "killed"))
        survived += curves[0] == curves[1] and same_samples and weights == 0
    return survived


def _samples(file) -> dict:
    """(rank, step, micro-batch) -> pair ids, draws, sigma and a number drawn from torch's generator."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return {tuple(row["where"]): row["sample"] for row in rows}


def test_killed_in_the_middle_of_a_step_and_resumed(start, fault_config, tally):
    tally(5, 1, kill_at_random(start, fault_config, 1))


@pytest.mark.slow
def test_killed_at_10_random_steps_and_resumed(start, fault_config, tally):
    tally(5, 10, kill_at_random(start, fault_config, 10))
