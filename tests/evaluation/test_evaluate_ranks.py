"""One sampler for any number of ranks: clips and numbers are the same bits, and what was stopped goes on."""

import json
import re
import signal
import weakref
from pathlib import Path

import pytest
import torch

from pgdpo.checkpoints.runs import open_run
from pgdpo.evaluation.evaluate import evaluate
from pgdpo.evaluation.models import Models
from pgdpo.evaluation.samples import Samples
from tests.ranks import Ranks
from tests.worlds import eagerly, run_pgdpo, share_pairs, write_config

# Four batches of one: uneven shares for three ranks. ZeRO-3 shards the weights that all train over the ranks.
SMALL = ["train.steps=2", "evaluate.num_prompts=4", "evaluate.batch=1"]
RUNS = {
    "lora": [],
    "full": ["model.adapter=null", "train.zero_stage=3", "train.learning_rate=3e-3", "train.precision=bf16"],
}


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """The folder with the runs RUNS, of two steps."""
    folder = tmp_path_factory.mktemp("runs")
    config = write_config(folder / "config.yaml", share_pairs(folder, world), world / "tiny_wan")
    with eagerly():
        for name, changes in RUNS.items():
            run_pgdpo("train", config, f"name={name}", *SMALL, *changes)
    return folder / "out"


@pytest.fixture(scope="module")
def alone(runs, zygotes, tmp_path_factory):
    """Run -> what one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    Ranks(zygotes, folder).call(evaluated, [wanted(runs, name, folder) for name in RUNS], ranks=1)
    return {name: results(folder / name) for name in RUNS}


def wanted(runs, name, folder, *options):
    return [str(runs / name), str(folder / name), *options]


def evaluated(calls):
    for run, out, *options in calls:
        evaluate(open_run(run, options, out=Path(out)))


def results(out):
    """Its numbers, and the bytes of its clips."""
    found = json.loads((out / "results.json").read_text())
    clips = {path.name: path.read_bytes() for path in (out / "evaluations/step-00000002/clips").iterdir()}
    assert not (out / "evaluations/.unfinished").exists() and len(clips) == 8
    return {key: found[key] for key in ("displacement", "buckets", "win_rate", "reward", "samples")}, clips


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_results_and_clips_are_the_same_on_any_number_of_ranks(runs, alone, ranks, tmp_path, count):
    """Of a LoRA and of weights that all train, whole on each rank and sharded over them; by the command, and as it."""
    for name in RUNS:
        assert alone[name][0]["displacement"]["excess/chosen"] != 0
    run, out, *_ = wanted(runs, "lora", tmp_path / "whole")
    others = [
        wanted(runs, "lora", tmp_path / "sharded", "train.zero_stage=3"),
        wanted(runs, "full", tmp_path / "sharded"),
        wanted(runs, "full", tmp_path / "whole", "train.zero_stage=0"),
    ]
    command = ranks.start([["evaluate", run, "--out", out]], ranks=count)
    ranks.call(evaluated, others, ranks=count)
    command.succeed(240)
    for held in ("whole", "sharded"):
        assert {name: results(tmp_path / held / name) for name in RUNS} == alone
    assert (tmp_path / "whole/lora/report.html").is_file()
    said = " ".join(f"{command.text(0)} {ranks.jobs[-1].text(0)}".split())
    for weights in ("one model for both: [^,]*\\.float32", "one after the other: [^,]*bfloat16"):
        assert re.search(rf"{weights}, whole on each of {count} ranks", said)
        assert re.search(rf"{weights}, [\d.e-]+ GB on each of {count} ranks", said)


@pytest.mark.usefixtures("eager_kernels")
def test_two_models_are_never_in_memory_together(runs, tmp_path, monkeypatch):
    """Each held as the pipeline that it is exported to holds it; gone when clips are decoded."""
    load, score, seen = Models._load, Samples.score, []

    def loaded(self, which):
        assert not alive(seen)
        transformer = load(self, which)
        dtypes = {p.dtype for p in transformer.parameters()}
        assert (
            dtypes == {torch.bfloat16, torch.float32} and transformer.proj_out.weight.dtype == torch.bfloat16
        )
        seen.append(weakref.ref(transformer))
        return transformer

    def scored(self, *arguments):
        assert len(seen) == 2 and not alive(seen)
        score(self, *arguments)

    monkeypatch.setattr(Models, "_load", loaded)
    monkeypatch.setattr(Samples, "score", scored)
    evaluated([wanted(runs, "full", tmp_path, "evaluate.num_prompts=1")])
    assert len(seen) == 2


def alive(references):
    return [each for each in references if each() is not None]


def test_what_a_killed_rank_leaves_is_gone_on_with(runs, alone, ranks, tmp_path):
    """A rank dies while both sample the aligned model together; the other is ended, and one process finishes."""
    calls = [wanted(runs, "full", tmp_path)]
    noted = {"hook": "note_samples", "function": evaluated, "arguments": [calls]}
    job = ranks.start(**noted, file=str(tmp_path / "first"), victim=1, after=3)
    assert job.wait(120) == [1, -signal.SIGKILL]
    said = " ".join(job.text(0).split())  # a bar's lines are wrapped
    assert "rank 1 on" in said and "what was finished is kept" in said, said
    ranks.start(**noted, ranks=1, file=str(tmp_path / "second")).succeed(120)
    assert results(tmp_path / "full") == alone["full"]
    first = (tmp_path / "first-rank0").read_text().splitlines()
    assert len(first) == 4  # two of the reference's, two of the aligned model's
    assert (tmp_path / "second-rank0").read_text().splitlines() == ["[[2, 0]]", "[[3, 0]]"]
