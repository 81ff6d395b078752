"""Evaluation through the real pipeline: what must hold whatever the clips look like."""

import json

import pytest

from pgdpo.training.held_out.statistics import share
from tests.worlds import launch, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")


def evaluated(config_file, name, *overrides):
    run_pgdpo("train", config_file, f"name={name}", *overrides)
    run_pgdpo("evaluate", config_file, f"name={name}", *overrides)
    return json.loads((config_file.parent / "out" / name / "results.json").read_text())


@pytest.mark.parametrize("adapter", [True, False])
def test_a_model_that_did_not_move_ties_with_its_reference(config_file, adapter):
    still = ["train.learning_rate=1e-30", "train.steps=1"] + ([] if adapter else ["model.adapter=null"])
    results = evaluated(config_file, "still", *still)
    assert results["win_rate"]["ties"] == results["win_rate"]["samples"] == 2
    assert results["win_rate"]["value"] == 0.5
    assert results["displacement"]["value"] == results["displacement"]["excess/chosen"] == 0.0
    assert results["reward"]["reference"] == results["reward"]["aligned"]
    for sample in results["samples"]:
        folder = config_file.parent / "out" / "still"
        clips = [(folder / sample[which]["clip"]).read_bytes() for which in ("reference", "aligned")]
        assert clips[0] == clips[1]


def test_results_of_every_run_stand_in_one_table_and_are_the_same_when_evaluated_again(config_file):
    first = evaluated(config_file, "dpo", "train.steps=2")
    both = evaluated(config_file, "pg_dpo", "objective.name=pg_dpo", "train.steps=2")
    assert [row["run"] for row in first["objectives"]] == ["dpo"]
    assert [row["run"] for row in both["objectives"]] == ["dpo", "pg_dpo"]
    assert both["objectives"][0]["win_rate"] == first["win_rate"]
    assert first["displacement"]["pairs"] == 4
    assert sum(bucket["pairs"] for bucket in first["buckets"].values()) >= 4
    assert (config_file.parent / "out" / "pg_dpo" / "report.html").stat().st_size > 10_000
    run_pgdpo("evaluate", config_file, "name=dpo", "train.steps=2")  # again, and anew
    again = json.loads((config_file.parent / "out" / "dpo" / "results.json").read_text())
    for name in ("win_rate", "displacement", "buckets", "reward"):
        assert first[name] == again[name]


def test_the_interval_of_a_share():
    # Brown, Cai & DasGupta 2001: Wilson's interval of 0 of 10 and 8 of 10
    assert share(0, 10) == pytest.approx({"value": 0.0, "low": 0.0, "high": 0.2775}, abs=1e-4)
    assert share(8, 10) == pytest.approx({"value": 0.8, "low": 0.4902, "high": 0.9433}, abs=1e-4)


def test_the_terminal_shows_our_lines_and_the_log_the_libraries(config_file):
    done = launch("train", config_file, "name=quiet", "train.steps=1")
    assert done.returncode == 0, done.stderr
    log = (config_file.parent / "out" / "quiet" / "run.log").read_text()
    assert "xformers" in log.lower()
    assert done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    assert lines[0].startswith("dpo: 12 pairs") and lines[-1].startswith("trained -> ")
    assert not [line for line in lines if "warn" in line.lower() or "[INFO]" in line]
