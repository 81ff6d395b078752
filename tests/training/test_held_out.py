"""Figures of held-out pairs while a run trains: what they are made of, on every road, and what a resumed run has."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.messages.errors import InputError
from pgdpo.training.held_out.figures import Numbers
from pgdpo.training.held_out.statistics import mean, student95
from tests.worlds import copy_beside, losses, run_pgdpo

EVERY = ("evaluate.every=2", "evaluate.every_prompts=0")
FULL = ("model.adapter=null", "train.learning_rate=1e-5")
NAMES = ("implicit_accuracy", "displacement", "margin", "excess/chosen", "excess/rejected", "saturation")


def looks(config_file, name) -> list[dict]:
    """Lines of a run's held_out.jsonl, without what a clock gave."""
    text = (config_file.parent / "out" / name / "held_out.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]


def train(config_file, name, *overrides, options=()) -> list[dict]:
    run_pgdpo("train", config_file, *options, f"name={name}", *EVERY, *overrides)
    return looks(config_file, name)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.booleans())
@settings(max_examples=40, deadline=None)
def test_figures_are_means_of_pairs_over_their_levels(seed, pairs, draws, spoilt):
    random = np.random.default_rng(seed)
    sigmas = random.uniform(0, 1, draws).tolist()
    chosen, rejected = random.choice([-1.0, 0.0, 0.5], (2, pairs, draws))
    logits = random.choice([-9.0, 0.0, 8.5], (pairs, draws))
    loss = random.normal(size=(pairs, draws))
    if spoilt:
        chosen[0, 0] = math.nan
    found = Numbers(sigmas, chosen, rejected, 1.0 * (abs(logits) > 8), loss).figures()
    parts = [(range(draws), found)]
    for name, part in found["buckets"].items():
        low, high = map(float, name.split("_")[1:])
        parts.append(([d for d, sigma in enumerate(sigmas) if low <= sigma < high], part))
    assert sorted(d for group, _ in parts[1:] for d in group) == list(range(draws))
    for group, part in parts:
        excess = [
            [sum(side[p][d] for d in group) / len(group) for side in (chosen, rejected)] for p in range(pairs)
        ]
        broken = any(math.isnan(value) for pair in excess for value in pair)
        displaced = sum(pair[0] > 0 for pair in excess) / pairs
        accurate = sum(1.0 if r > c else 0.5 if r == c else 0.0 for c, r in excess) / pairs
        assert part["displacement"]["value"] == (None if broken else pytest.approx(displaced))
        assert part["implicit_accuracy"]["value"] == (None if broken else pytest.approx(accurate))
        saturated = sum(abs(logits[p][d]) > 8 for p in range(pairs) for d in group) / pairs / len(group)
        assert part["saturation"]["value"] == pytest.approx(saturated)
        assert part["loss"]["value"] == pytest.approx(
            np.mean([loss[p][d] for p in range(pairs) for d in group])
        )
        for name in ("displacement", "implicit_accuracy", "saturation"):
            if part[name]["value"] is not None:
                assert 0 <= part[name]["low"] <= part[name]["value"] <= part[name]["high"] <= 1


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (7, 2.3646), (30, 2.0423)]
)
def test_intervals_of_means_are_students(freedom, quantile):
    """Of published tables."""
    assert student95(freedom) == pytest.approx(quantile, rel=2e-3)
    values = np.random.default_rng(freedom).normal(3.0, 2.0, freedom + 1)
    found = mean(values.tolist())
    assert found["value"] == pytest.approx(values.mean())
    half = quantile * values.std(ddof=1) / math.sqrt(len(values))
    assert found["high"] - found["value"] == pytest.approx(half, rel=2e-3)
    assert mean([4.0]) == {"value": 4.0, "low": None, "high": None}


@pytest.mark.usefixtures("eager_kernels", "undrawn")
def test_figures_are_those_of_the_evaluation_and_leave_the_losses_as_they_are(config_file):
    run_pgdpo("train", config_file, "name=plain")
    found = train(config_file, "watched")
    assert losses(config_file.parent / "out", "watched") == losses(config_file.parent / "out", "plain")
    assert [look["step"] for look in found] == [0, 2, 4] and {look["pairs"] for look in found} == {4}
    start = {name: found[0][name]["value"] for name in NAMES}
    assert start == dict.fromkeys(NAMES, 0.0) | {"implicit_accuracy": 0.5}  # to the last bit
    assert found[0]["loss"]["value"] == pytest.approx(math.log(2), abs=1e-7)
    run = config_file.parent / "out" / "watched"
    run_pgdpo("evaluate", run, "evaluate.num_prompts=1", "evaluate.sampling_steps=1")
    results = json.loads((run / "results.json").read_text())
    for mine, theirs in ((found[-1], results["displacement"]), *zip_buckets(found[-1], results)):
        for name in ("margin", "excess/chosen", "excess/rejected"):
            assert mine[name]["value"] == pytest.approx(theirs[name], rel=1e-4)
        assert mine["implicit_accuracy"]["value"] == theirs["implicit_accuracy"]
    assert found[-1]["displacement"]["value"] == results["displacement"]["value"]


def zip_buckets(look, results):
    assert look["buckets"].keys() == results["buckets"].keys()
    return [(look["buckets"][name], results["buckets"][name]) for name in look["buckets"]]


@pytest.mark.usefixtures("eager_kernels")
@pytest.mark.parametrize("weights", [(), FULL], ids=["lora", "full"])
def test_a_cached_reference_gives_the_figures_of_a_live_one(config_file, weights):
    steps = ("train.steps=2", *weights)
    run_pgdpo("reference", config_file, "train.cached_draws=2", *weights)
    live = train(config_file, "live", "train.reference=frozen", *steps)
    cached = train(config_file, "cached", "train.reference=cached", "train.cached_draws=2", *steps)
    assert live[0] == cached[0]
    for name in ("loss", *NAMES):
        assert live[1][name]["value"] == pytest.approx(cached[1][name]["value"], rel=1e-4, abs=1e-9)


def test_ranks_share_the_pairs(config_file, ranks):
    """On two ranks, with shards, shared tokens and a reference that moves: the figures of one rank."""
    still = [*EVERY, "train.steps=2", "train.learning_rate=1e-4", "train.micro_batch_groups=2"]
    roads = {
        "whole": [],
        "sharded": ["train.zero_stage=3"],
        "tokens": ["train.sequence_parallel=2"],
        "moving": ["train.reference=synced", "train.reference_sync_every=1"],
    }
    ranks.train(config_file, {"alone": still}, ranks=1)
    ranks.train(config_file, {name: [*still, *road] for name, road in roads.items()})
    alone = looks(config_file, "alone")
    for name in roads:
        found = looks(config_file, name)
        assert [look["step"] for look in found] == [0, 2]
        assert found[0]["margin"]["value"] == 0.0
        if name != "moving":
            assert found[1]["margin"]["value"] == pytest.approx(alone[1]["margin"]["value"], rel=2e-2)
        assert found[1]["margin"]["value"] != 0.0


@pytest.mark.usefixtures("eager_kernels")
def test_a_resumed_run_has_the_lines_of_one_that_was_not(config_file):
    whole = train(config_file, "whole", "train.steps=6")
    run = config_file.parent / "out" / "whole"
    lost = copy_beside(run, "lost")
    (lost / "held_out.safetensors").unlink()
    first = train(config_file, "first", "train.steps=6", "train.keep_every=2")
    assert first == whole
    (config_file.parent / "out" / "first" / "checkpoints" / "step-00000006").rename(lost / "elsewhere")
    assert train(config_file, "first", "train.steps=6", options=["--resume"]) == whole
    # Of an adapter the model that the run began with is there at any time.
    run_pgdpo("train", lost, "--resume", "train.steps=8")
    assert looks(config_file, lost.name)[:4] == whole
    assert (lost / "held_out.safetensors").read_bytes() == (run / "held_out.safetensors").read_bytes()


@pytest.mark.usefixtures("eager_kernels")
def test_without_the_errors_of_the_start_all_weights_have_no_figures(config_file):
    run_pgdpo("reference", config_file, "train.cached_draws=2", *FULL)
    cached = ("train.reference=cached", "train.cached_draws=2", "train.steps=2", *FULL)
    train(config_file, "gone", *cached)
    (config_file.parent / "out" / "gone" / "held_out.safetensors").unlink()
    with pytest.raises(InputError, match="held_out.safetensors: not there, or of other held-out"):
        run_pgdpo("train", config_file.parent / "out" / "gone", "--resume", "train.steps=4")


@pytest.mark.usefixtures("eager_kernels")
def test_an_objective_that_compares_predictions_has_no_held_out_loss(config_file, capsys):
    """All but the loss is measured, and that is said."""
    found = train(config_file, "drift", "objective={name: dspo}", "train.steps=2")
    assert "loss" not in found[1] and found[1]["margin"]["value"] != 0.0
    assert "no loss of held-out pairs: objective `dspo` compares more than errors" in capsys.readouterr().out


@pytest.mark.usefixtures("eager_kernels")
def test_the_number_of_pairs_is_in_the_record(config_file):
    import yaml

    train(config_file, "recorded", "train.steps=2")
    run = config_file.parent / "out" / "recorded"
    assert yaml.safe_load((run / "config.yaml").read_text())["evaluate"]["every_pairs"] == 4
    state = json.loads((run / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert state["config"]["evaluate"]["every_pairs"] == 4
