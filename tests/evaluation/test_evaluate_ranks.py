"""One sampler for any number of ranks: clips and numbers are the same bits, and what was stopped goes on."""

import json

import pytest

from tests.worlds import run_pgdpo, share_pairs, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels")

SAME = ("displacement", "buckets", "win_rate", "reward", "samples")
FULL = ["model.adapter=null", "train.zero_stage=3", "train.learning_rate=3e-3"]
# Five prompts would need five pairs; four pairs in batches of one make uneven shares for three ranks.
ONE_BY_ONE = ["evaluate.num_prompts=4", "evaluate.batch=1"]


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """A configuration, and runs of two steps: `lora`, and `full`, whose weights all train under ZeRO-3."""
    folder = tmp_path_factory.mktemp("runs")
    config = write_config(folder / "config.yaml", share_pairs(folder, world), world / "tiny_wan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGDPO_KERNELS_BACKEND", "eager")
        for name, changes in (("lora", ["train.zero_stage=1"]), ("full", FULL)):
            run_pgdpo("train", config, f"name={name}", "train.steps=2", "train.checkpoint_every=1", *changes)
    return folder / "out"


def evaluated(ranks, run, out, world, *options, **how):
    """Its results on so many ranks, and the bytes of its clips."""
    ranks.run(["evaluate", run, "--out", out, *ONE_BY_ONE, *options], ranks=world, **how)
    results = json.loads((out / "results.json").read_text())
    clips = {
        path.name: path.read_bytes()
        for path in (out / results["samples"][0]["aligned"]["clip"]).parent.iterdir()
    }
    return {name: results[name] for name in SAME}, clips


@pytest.mark.parametrize("name", ["lora", "full"])
def test_results_and_clips_are_the_same_on_any_number_of_ranks(runs, ranks, tmp_path, name):
    """Of weights that are whole on a rank, and of weights that are sharded over two."""
    options = ["train.precision=fp32"]
    alone = evaluated(ranks, runs / name, tmp_path / "1", 1, *options)
    assert alone[0]["displacement"]["excess/chosen"] != 0 and len(alone[1]) == 8
    for world in (2, 3):
        assert evaluated(ranks, runs / name, tmp_path / str(world), world, *options) == alone
        said = ranks.jobs[-1].text(0)
        assert ("GB on each of" in said) == (name == "full"), said
        assert not (tmp_path / str(world) / "evaluations/.unfinished").exists()
    whole = evaluated(ranks, runs / name, tmp_path / "whole", 2, *options, "train.zero_stage=0")
    assert whole == alone
