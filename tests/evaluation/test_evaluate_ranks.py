"""One sampler for any number of ranks: clips and numbers are the same bits, and what was stopped goes on."""

import json
import signal

import pytest

from tests.ranks import Ranks
from tests.worlds import run_pgdpo, share_pairs, write_config

# Four batches of one: uneven shares for three ranks. ZeRO-3 shards the weights that all train over the ranks.
SMALL = ["train.steps=2", "evaluate.num_prompts=4", "evaluate.batch=1"]
RUNS = {"lora": [], "full": ["model.adapter=null", "train.zero_stage=3", "train.learning_rate=3e-3"]}


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """The folder with the runs RUNS, of two steps."""
    folder = tmp_path_factory.mktemp("runs")
    config = write_config(folder / "config.yaml", share_pairs(folder, world), world / "tiny_wan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGDPO_KERNELS_BACKEND", "eager")
        for name, changes in RUNS.items():
            run_pgdpo("train", config, f"name={name}", *SMALL, *changes)
    return folder / "out"


@pytest.fixture(scope="module")
def alone(runs, zygotes, tmp_path_factory):
    """Run -> what one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    Ranks(zygotes, folder).run(*(command(runs, name, folder) for name in RUNS), ranks=1)
    return {name: results(folder / name) for name in RUNS}


def command(runs, name, folder, *options):
    return ["evaluate", runs / name, "--out", folder / name, *options]


def results(out):
    """Its numbers, and the bytes of its clips."""
    found = json.loads((out / "results.json").read_text())
    clips = {path.name: path.read_bytes() for path in (out / "evaluations/step-00000002/clips").iterdir()}
    assert not (out / "evaluations/.unfinished").exists() and len(clips) == 8
    return {key: found[key] for key in ("displacement", "buckets", "win_rate", "reward", "samples")}, clips


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_results_and_clips_are_the_same_on_any_number_of_ranks(runs, alone, ranks, tmp_path, count):
    """Of a LoRA, of weights that are whole on each rank, and of weights that are sharded over them."""
    for name in RUNS:
        assert alone[name][0]["displacement"]["excess/chosen"] != 0
    whole = command(runs, "full", tmp_path / "whole", "train.zero_stage=0")
    ranks.run(*(command(runs, name, tmp_path) for name in RUNS), whole, ranks=count)
    assert {name: results(tmp_path / name) for name in RUNS} == alone
    assert results(tmp_path / "whole/full") == alone["full"]
    said = " ".join(ranks.jobs[-1].text(0).split())
    assert (
        f"one model for both: 0.000199 GB of weights in torch.float32, whole on each of {count} ranks" in said
    )
    assert f"GB on each of {count} ranks" in said and said.count("one after the other") == 2


def test_what_a_killed_rank_leaves_is_gone_on_with(runs, alone, ranks, tmp_path):
    """A rank dies while both sample the aligned model together; the other is ended, and one process finishes."""
    job = ranks.start(
        [command(runs, "full", tmp_path)],
        hook="note_samples",
        file=str(tmp_path / "first"),
        victim=1,
        after=3,
    )
    assert job.wait(60) == [1, -signal.SIGKILL]
    assert "rank 1 on" in job.text(0) and "what is finished is kept" in job.text(0)
    ranks.run(command(runs, "full", tmp_path), ranks=1, hook="note_samples", file=str(tmp_path / "second"))
    assert results(tmp_path / "full") == alone["full"]
    first = (tmp_path / "first-rank0").read_text().splitlines()
    assert len(first) == 4  # two of the reference's, two of the aligned model's
    assert (tmp_path / "second-rank0").read_text().splitlines() == ["[[2, 0]]", "[[3, 0]]"]
