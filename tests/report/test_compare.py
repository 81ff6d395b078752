"""Several runs on one page: what ended how, in which settings they differ, and what is no run."""

import json
import re

import pytest

from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from pgdpo.report.compare import differences
from tests.worlds import run_pgdpo

LOOK = ("evaluate.every=2", "evaluate.every_prompts=0")


@pytest.mark.usefixtures("eager_kernels")
def test_runs_stand_beside_each_other(config_file, tmp_path):
    out = config_file.parent / "out"
    run_pgdpo("train", config_file, "name=first", *LOOK)
    run_pgdpo("train", config_file, "name=second", "objective={name: pg_dpo, beta: 50}")
    run_pgdpo("report", out / "first", out / "second", "--out", tmp_path / "page")
    text = (tmp_path / "page" / "comparison.html").read_text()
    keys = dict(re.findall(r"<code>([\w.]+)</code></th>((?:<td>[^<]*</td>)+)", text))
    assert {"objective.beta", "objective.name", "evaluate.every"} <= keys.keys()
    assert not {"name", "output_dir", "train.seed"} & keys.keys()
    assert keys["objective.beta"] == "<td>500</td><td>50</td>"
    data = [json.loads(found) for found in re.findall(r'application/json">(.*?)</script>', text)]
    loss, accuracy = (
        next(each for each in data if name in titles(text)[data.index(each)]) for name in ("Loss", "Implicit")
    )
    assert [line["label"] for line in loss["lines"]] == ["first", "second"]
    # Where a run measured held-out pairs these are drawn, else its training pairs.
    assert [line["x"] for line in accuracy["lines"]] == [[0, 2, 4], [1, 2, 3, 4]]
    assert "low" in accuracy["lines"][0] and "low" not in accuracy["lines"][1]
    with pytest.raises(InputError, match="no run: name the folders of runs"):
        run_pgdpo("report", out / "first", out)
    with pytest.raises(InputError, match="named twice"):
        run_pgdpo("report", out / "first", out / "first")
    with pytest.raises(InputError, match="evaluate.report_pairs=4 is given beside several runs"):
        run_pgdpo("report", out / "first", out / "second", "evaluate.report_pairs=4")


def titles(text: str) -> list[str]:
    return re.findall(r'<div class="top"><h3>([^<]*)</h3><button', text)


def test_settings_that_differ_are_told_alone(config_file):
    configs = [
        load_config(config_file, [f"train.seed={seed}", "model.adapter.rank=8", *more])
        for seed, more in enumerate([[], ["train.steer.cap_margin={logit: 4}"]])
    ]
    found = dict(differences(configs))
    assert found == {
        "train.seed": ["0", "1"],
        "train.steer.cap_margin": ["–", "–"],
        "train.steer.cap_margin.logit": ["–", "4.0"],
    } or found == {"train.seed": ["0", "1"], "train.steer.cap_margin.logit": ["–", "4.0"]}
    assert differences([configs[0], configs[0]]) == []
