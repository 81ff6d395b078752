"""A study on the tiny world, and its figures against numbers worked out by hand."""

import json
import math

import pytest
import yaml

from pgdpo.config.read import load_study
from pgdpo.evaluation.comparison import (
    by_win_rate,
    draw,
    mean_over_seeds,
    share_over_seeds,
    study_table,
    summarise,
)
from pgdpo.evaluation.study import _row
from pgdpo.messages.errors import InputError
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")

OBJECTIVES = {"dpo": {"beta": 500}, "guarded": {"name": "dpo", "beta": 500, "safeguard": {"mu": 0.9}}}


@pytest.fixture
def study_file(config_file):
    path = config_file.parent / "study.yaml"
    study = {
        "output_dir": str(config_file.parent / "out"),
        "base": str(config_file),
        "changes": ["train.steps=2"],
        "seeds": [3],
        "objectives": OBJECTIVES,
    }
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


@pytest.fixture
def said(monkeypatch):
    """The study's own lines."""
    lines = []
    monkeypatch.setattr(
        "pgdpo.evaluation.study.say", lambda message, first="", **style: lines.append(first + message)
    )
    return lines


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json*")}


def test_a_label_may_change_more_than_the_objective(study_file):
    study = yaml.safe_load(study_file.read_text())
    rule = "data.select=[{by: margin, score: total, low: 0.5}]"
    study["objectives"]["half"] = {"name": "dpo", "beta": 500, "changes": [rule]}
    study_file.write_text(yaml.safe_dump(study))
    _, runs = load_study(study_file)
    assert runs["half"][0].data.select[0].low == 0.5 and not runs["dpo"][0].data.select
    assert runs["half"][0].objective == {"name": "dpo", "beta": 500} and runs["half"][0].train.steps == 2


def test_how_parts_are_put_together_is_the_bases_unless_a_label_says_it(tmp_path):
    """Their weights are no objective's own: a study on sound and picture would compare other sums than its base has."""
    parts = {"audio": 0.3, "form": "separate"}
    base = {
        "output_dir": "runs",
        "data": {"train": "train.jsonl", "num_frames": 9, "height": 64, "width": 64},
        "model": {"family": "ltx2", "path": "model"},
        "objective": {"name": "pg_dpo", "beta": 700, "parts": parts},
    }
    study = {
        "output_dir": "runs/study",
        "base": "base.yaml",
        "seeds": [0],
        "objectives": {"dpo": {"beta": 500}, "picture": {"name": "dpo", "beta": 500, "parts": {"audio": 0}}},
    }
    for name, values in (("base", base), ("study", study)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    _, runs = load_study(tmp_path / "study.yaml")
    assert runs["dpo"][0].objective == {"name": "dpo", "beta": 500, "parts": parts}
    assert runs["picture"][0].objective["parts"] == {"audio": 0}
    assert _row("picture", runs["picture"][0], "failed")["options"] == {"beta": 500, "parts": {"audio": 0}}


def test_two_objectives_end_in_one_json_one_picture_and_a_table(study_file, said):
    out = study_file.parent / "out"
    run_pgdpo("study", study_file)
    result = json.loads((out / "study.json").read_text())
    assert [(run["label"], run["seed"], run["steps"], run["failed"]) for run in result["runs"]] == [
        ("dpo", 3, 2, None),
        ("guarded", 3, 2, None),
    ]
    for entry, run in zip(result["objectives"], result["runs"], strict=True):
        results = json.loads((out / f"{entry['label']}-seed3" / "results.json").read_text())
        assert entry["win_rate"]["value"] == results["win_rate"]["value"]
        assert entry["displacement"] == {k: results["displacement"][k] for k in ("value", "low", "high")}
        assert entry["margin"]["value"] == results["displacement"]["margin"] and run["seconds_per_step"] > 0
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
    assert ["1/2" in said[0], "2/2" in said[1], "eta" in said[1], "study.png" in said[2]] == [True] * 4

    before = files(out)
    run_pgdpo("study", study_file)
    assert files(out) == before and "".join(said).count("is there already") == 2

    (
        out / "guarded-seed3" / "results.json"
    ).unlink()  # as if it had been stopped between training and evaluation
    run_pgdpo("study", study_file)
    again = json.loads((out / "study.json").read_text())["runs"]
    assert [run["win_rate"] for run in again] == [run["win_rate"] for run in result["runs"]]
    assert [run["seconds_per_step"] for run in again] == [run["seconds_per_step"] for run in result["runs"]]

    with pytest.raises(InputError, match="other settings"):
        run_pgdpo("study", study_file, "changes=[train.steps=3]")


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("objectives={madpo: {}}", ["`madpo`", "`reward_margin`", "row 1"]),
        ("objectives={dpo: {betta: 1}}", ["objectives.dpo", "`betta`", "did you mean `beta`"]),
        ("objectives={a/b: {name: dpo}}", ["'a/b'"]),
        ("objectives={}", ["`objectives`"]),
        ("seeds=[1, 1]", ["`seeds`", "once"]),
        ("seeds=[-1]", ["train.seed", "-1"]),
        ("changes=[train.step=1]", ["`train.step`", "did you mean `steps`"]),
        ("seed=[1]", ["`seed`", "did you mean `seeds`"]),
    ],
)
def test_bad_input_is_refused_before_the_first_run(study_file, override, fragments):
    with pytest.raises(InputError) as caught:
        run_pgdpo("study", study_file, override)
    assert all(fragment in str(caught.value) for fragment in fragments), caught.value
    assert not list((study_file.parent / "out").glob("*/metrics.jsonl"))


def test_a_run_that_fails_is_recorded_and_the_others_go_on(study_file, said):
    """A learning rate at which the weights overflow: the trainer stops, the study does not."""
    changes = "changes=[train.steps=3, train.learning_rate=1.0e+37, train.weight_decay=0]"
    run_pgdpo("study", study_file, changes)
    result = json.loads((study_file.parent / "out" / "study.json").read_text())
    assert all("not finite" in run["failed"] for run in result["runs"])
    assert [entry["failed"] for entry in result["objectives"]] == [1, 1]
    assert any("failed guarded-seed3: step" in line for line in said)


def test_a_finished_run_of_other_pairs_is_not_compared(study_file, tmp_path):
    toy, manifest = study_file.parent / "out" / "toy", tmp_path / "pairs.jsonl"
    rows = [json.loads(line) for line in (toy / "train.jsonl").read_text().splitlines()[:4]]
    for row in rows:
        row |= {side: str(toy / row[side]) for side in ("chosen", "rejected")}
    options = [
        "objectives={dpo: {beta: 500}}",
        f"changes=[train.steps=1, data.train={manifest}, data.media_root={toy}, data.prepared={tmp_path / 'prepared'}]",
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_pgdpo("study", study_file, *options)
    rows[0]["chosen"], rows[0]["rejected"] = rows[0]["rejected"], rows[0]["chosen"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="dpo-seed3: this run was trained on other pairs"):
        run_pgdpo("study", study_file, *options)


def test_the_study_that_ships_is_valid_and_large_enough():
    study, runs = load_study("study.yaml")
    assert len(runs) >= 10 and len(study.seeds) >= 3
    names = [config.name for configs in runs.values() for config in configs]
    assert len(set(names)) == len(runs) * len(study.seeds)
    budgets = {
        (c.train.steps, c.train.global_batch_groups, c.data.toy.seed) for cs in runs.values() for c in cs
    }
    assert len(budgets) == 1


class TestFigures:
    def test_a_mean_over_three_seeds_has_students_interval(self):
        found = mean_over_seeds([1.0, 2.0, 3.0])
        half = 4.303 / math.sqrt(3)  # t at 97.5%, 2 degrees of freedom; standard deviation 1
        assert found == {"value": 2.0, "low": pytest.approx(2 - half), "high": pytest.approx(2 + half)}
        assert mean_over_seeds([5.0]) == {"value": 5.0, "low": None, "high": None}
        assert mean_over_seeds([]) is None

    def test_seeds_that_agree_do_not_narrow_the_samples_interval(self):
        share = {"value": 0.5, "samples": 4}
        one, three = share_over_seeds([share], "samples"), share_over_seeds([share] * 3, "samples")
        assert (
            one
            == three
            == {"value": 0.5, "low": pytest.approx(0.15, abs=1e-2), "high": pytest.approx(0.85, abs=1e-2)}
        )

    def test_seeds_that_disagree_widen_it(self):
        found = share_over_seeds([{"value": v, "samples": 10_000} for v in (0.4, 0.5, 0.6)], "samples")
        assert found["high"] - found["value"] == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-6)
        assert share_over_seeds([{"value": v, "samples": 8} for v in (0.0, 1.0)], "samples")["low"] == 0.0

    def result(self):
        def run(label, seed, win, failed=None):
            measured = {
                "win_rate": None if win is None else {"value": win, "samples": 8},
                "displacement": {"value": 0.25, "pairs": 8},
                "margin": 0.01 * seed,
                "seconds_per_step": 0.5,
            }
            row = {"label": label, "objective": label, "options": {}, "seed": seed, "failed": failed}
            return row if failed else row | measured

        rows = [run("good", 0, 0.9), run("good", 1, 0.8), run("bad", 0, 0.2), run("bad", 1, None, "not finite"),
                run("gone", 0, None, "not finite"), run("unscored", 0, None)]  # fmt: skip
        budget = {"steps": 5, "pairs_per_step": 2}
        return {"runs": rows, "objectives": summarise(rows), "budget": budget, "machine": "a test"}

    def test_failed_seeds_are_counted_and_left_out(self):
        good, bad, gone, unscored = self.result()["objectives"]
        assert good["win_rate"]["value"] == pytest.approx(0.85) and good["failed"] == 0
        assert bad["win_rate"]["value"] == 0.2 and bad["failed"] == 1 and bad["seeds"] == [0]
        assert gone["win_rate"] is None and gone["margin"] is None and unscored["win_rate"] is None
        assert [e["label"] for e in by_win_rate([gone, bad, good])] == ["good", "bad", "gone"]

    def test_table_and_picture_take_what_was_not_measured(self, tmp_path):
        assert study_table(self.result()).row_count == 4
        draw(self.result(), tmp_path / "study.png")
        assert (tmp_path / "study.png").stat().st_size > 10_000


def test_what_runs_settle_themselves_makes_them_no_other_runs(study_file, said):
    """The pairs that are looked at, `beta: auto`, and a run that ended early: the same study is finished at once."""
    study = yaml.safe_load(study_file.read_text())
    still = "train.learning_rate=1e-30"
    study["changes"] = ["train.steps=4", "evaluate.every=1", "evaluate.every_prompts=0"]
    study["objectives"] = {
        "fits": {"name": "dpo", "beta": "auto"},
        "ends": {"name": "dpo", "changes": [still, "train.steer.stop={patience: 1, figure: displacement}"]},
    }
    study_file.write_text(yaml.safe_dump(study))
    run_pgdpo("study", study_file)
    found = json.loads((study_file.parent / "out" / "study.json").read_text())
    assert {row["label"]: row["steps"] for row in found["runs"]} == {"fits": 4, "ends": 2}
    said.clear()
    run_pgdpo("study", study_file)
    assert sum("is there already" in line for line in said) == 2
