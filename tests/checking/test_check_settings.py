"""`pgdpo check`: what configuration and rows mean to each other, and folders, rewards and rules that cannot be."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from pgdpo.checking import run_check
from pgdpo.checking.rows import toy_rows
from pgdpo.config.read import load_config
from pgdpo.data.shards import read_index
from pgdpo.messages.console import say_once
from pgdpo.messages.errors import InputError
from tests.checking.test_check import check, folder, row  # noqa: F401 (a fixture)
from tests.worlds import run_pgdpo, save_tiny_wan, write_config

pytestmark = pytest.mark.quick
SOUND = ["train.global_batch_groups=2"]


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """A configuration of the toy that was never prepared."""
    monkeypatch.chdir(tmp_path)
    return write_config(tmp_path / "toy.yaml", Path("fresh"), "toy")


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ("data.order={by: margin, score: nope}", "scores", "missing in 12 of 12 rows, this one first; data.order"),
        ("data.order={by: implicit_reward, file: nope.json}", "data.order.file", "nope.json: cannot be read"),
        ("data.select=[{by: chosen_score, score: nope}]", "scores", "data.select.0 reads it"),
        ("data.weight={by: rarity, score: nope}", "scores", "data.weight reads it"),
        ("data.select=[{by: source, sources: [a]}]", "data.select.0.sources", "no row has a `source`"),
        ("data.select=[{by: on_policy, sources: [a]}]", "data.select.0.sources", "no row has a `source`"),
        ("data.select=[{by: fifa, score: total, quality: defect}]", "defect", "'text', no number, in 12 of 12"),
    ],
)  # fmt: skip
def test_rules_are_held_against_the_toy_before_it_is_rendered(toy, change, key, message):
    [problem] = run_check(str(toy), [change]).problems
    assert problem.key == key and message in problem.what and "None" not in str(problem)


def test_what_the_toy_has_is_found(toy, world):
    rules = (
        "data.select=[{by: fifa, score: obedience, quality: strength}]",
        "data.order={by: margin, score: total}",
    )
    assert run_check(str(toy), list(rules)).problems == []
    rendered = json.loads((world / "out/toy/train.jsonl").read_text().splitlines()[0])
    [stand_in, *_] = toy_rows(load_config(toy))
    assert (
        stand_in.values["id"] == rendered["id"]
        and stand_in.values["scores"].keys() == rendered["scores"].keys()
    )
    for key, value in stand_in.values.items():
        assert type(value) is type(rendered[key])
    for side, scores in rendered["scores"].items():
        assert stand_in.values["scores"][side].keys() == scores.keys()


def test_a_quality_that_is_text_is_not_said_to_be_missing(folder):  # noqa: F811
    rule = "data.select=[{by: fifa, score: total, quality: grade}]"
    scores = {side: {"total": 0.5} for side in ("chosen", "rejected")}
    rows = [row(0, scores=scores, grade="good"), row(1, scores=scores, grade=3), row(2, scores=scores)]
    said = [
        problem.what
        for problem in check(folder, rows, changes=[*SOUND, rule]).problems
        if problem.key == "grade"
    ]
    assert "`grade` is 'good', no number, in 1 of 3 rows, this one first; data.select.0 reads it" in said


@pytest.mark.parametrize("quality", ["id", "prompt", "chosen", "rejected", "source", "scores"])
def test_a_quality_that_no_row_may_have_as_a_number(toy, quality):
    with pytest.raises(InputError, match=f"the rows' `{quality}` is .*name a column with a number"):
        load_config(toy, [f"data.select=[{{by: fifa, score: total, quality: {quality}}}]"])


def test_folders_that_cannot_be(toy, tmp_path):
    """Each command says so before anything else is done; nothing is left behind by looking."""
    (tmp_path / "afile").write_text("")
    before = sorted(tmp_path.iterdir())
    for change, key in (
        ("output_dir=afile", "output_dir"),
        ("output_dir=afile/deep/down", "output_dir"),
        ("output_dir=/proc/none", "output_dir"),
        ("data.prepared=afile", "data.prepared"),
    ):
        [problem] = run_check(str(toy), [change]).problems
        assert problem.key == key
        with pytest.raises(InputError, match=key):
            run_pgdpo("prepare", toy, change)
    run_check(str(toy), [])
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(InputError, match="afile/train/index.json: cannot be read"):
        read_index(Path("afile/train"))
    with pytest.raises(InputError, match="OUT is afile: a file"):
        run_pgdpo("make", "prompts", toy, "rows.jsonl", "afile")
    with pytest.raises(InputError, match="--out is afile: a file"):
        run_pgdpo("report", toy, "--out", "afile")


def test_a_reward_is_called_once_before_anything_is_sampled(folder, capfd, monkeypatch):  # noqa: F811
    calls = []
    monkeypatch.setattr(
        "numpy.tried", lambda frames, prompt: calls.append((frames, prompt)) or 1.0, raising=False
    )
    say_once.cache_clear()
    assert check(folder, [row(0), row(1)], changes=[*SOUND, "evaluate.reward=numpy:tried"]).problems == []
    [(frames, prompt)] = calls
    assert (frames.shape, str(frames.dtype), prompt) == (
        (4, 16, 16, 3),
        "uint8",
        "a red ball",
    ) and frames.std() > 0
    assert "`numpy:tried` is called once, on noise" in " ".join(capfd.readouterr().out.split())
    [problem] = check(folder, [row(0), row(1)], changes=[*SOUND, "evaluate.reward=numpy:mean"]).problems
    assert problem.key == "evaluate.reward" and "`numpy:mean` failed (TypeError" in problem.what
    assert "uint8 frames [4, 16, 16, 3] and the prompt 'a red ball'" in problem.what


def test_evaluate_refuses_a_reward_before_it_loads_weights(config_file, monkeypatch):
    from pgdpo.evaluation import evaluate, models

    monkeypatch.setattr(models, "load_trained", lambda *_: pytest.fail("weights were loaded"))
    config = load_config(config_file, ["evaluate.reward=numpy:mean"])
    run = SimpleNamespace(config=config, out=Path("nowhere"), folder=Path("nowhere"))
    with pytest.raises(InputError, match="evaluate.reward `numpy:mean` failed"):
        evaluate.evaluate(run)


def test_fix_without_one_manifest_is_refused_at_once(folder, toy):  # noqa: F811
    for number in (0, 1):
        (folder / f"{number}.jsonl").write_text(json.dumps(row(number)) + "\n")
    several = "data.train=[{manifest: 0.jsonl}, {manifest: 1.jsonl}]"
    for changes, message in (([several], "data.train names 2"), ([], "data.train is `toy`")):
        with pytest.raises(InputError, match=message):
            run_check(str(toy), [*changes, "data.held_out=null"], fix="new.jsonl")
    assert not Path("new.jsonl").exists()


def test_allowed_is_what_the_message_says_is(folder):  # noqa: F811
    """And the key is the one that it begins with."""
    [problem] = check(folder, [row(0), row(1)], tiny_wan=folder, changes=SOUND).problems
    assert problem.allowed == "" and "give a diffusers folder" in problem.what
    (folder / "margins.json").write_text('{"margin": {"0": 1}}')
    order = f"data.order={{by: implicit_reward, file: {folder}/margins.json}}"
    [problem] = check(folder, [row(0), row(1)], changes=[*SOUND, order]).problems
    assert (
        problem.key == "data.order.file"
        and problem.allowed == ""
        and "has no margin of pair `1`" in problem.what
    )


def test_encoders_that_do_not_fit_the_transformer(folder):  # noqa: F811 (the fixture)
    """The toy's latents have 48 channels, its embeddings 64: the same is said of a plan."""
    for sizes, message in [
        ({"channels": 16}, "48 channels.*takes 16"),
        ({"text_dim": 32}, "64 channels.*takes 32"),
    ]:
        model = save_tiny_wan(folder / message[:2], **sizes)
        findings = check(folder, [row(0), row(1)], tiny_wan=model, changes=["train.global_batch_groups=2"])
        [problem] = findings.problems
        assert problem.key == "model.encoders" and re.search(message, problem.what), problem
        with pytest.raises(InputError, match=f"model.encoders is 'toy': .*{message}"):
            run_pgdpo("plan", folder / "config.yaml")
