"""`pgdpo init` keeps a configuration's comments, puts in what it is told, and fits it to the GPUs."""

import json

import pytest
import yaml

from pgdpo.config import load_config, load_study, shipped_configs
from pgdpo.errors import InputError
from pgdpo.init import models, set_key
from tests.worlds import run_pgdpo, save_tiny_wan_pipeline


@pytest.fixture(scope="module")
def whole_wan(tmp_path_factory):
    """A tiny pipeline whose positions reach as far as 480p needs."""
    folder = save_tiny_wan_pipeline(tmp_path_factory.mktemp("wan"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_max_seq_len": 1024}))
    return folder


def test_every_model_has_a_configuration_that_can_be_begun(tmp_path):
    assert {"wan21_1.3b", "hunyuan_video", "cogvideox_5b", "ltx_video"} <= set(models())
    assert not {"quickstart", "study", "study_selection"} & set(models())


def test_comments_stay_and_what_is_told_is_put_in(tmp_path, tiny_wan):
    out = tmp_path / "mine.yaml"
    run_pgdpo("init", "wan21_1.3b", out, "--path", tiny_wan, "--data", "pairs.jsonl", "--gpu", "H100")
    text = out.read_text()
    assert "# 4k + 1" in text and "`pgdpo objectives` lists the others" in text
    config = load_config(out)
    assert config.data.train == "pairs.jsonl" and config.model.path == str(tiny_wan)
    assert config.output_dir.name == "mine"
    with pytest.raises(
        InputError, match="there is one already: name another file, or replace it with --force"
    ):
        run_pgdpo("init", "wan21_1.3b", out)
    run_pgdpo("init", "wan21_1.3b", out, "--force", "--path", tiny_wan)


@pytest.mark.usefixtures("traced_once")
def test_a_run_that_does_not_fit_is_changed_until_it_does(tmp_path, whole_wan):
    """A made-up GPU that holds the tiny model's step only with less kept or in parts."""
    small, plain = tmp_path / "small.yaml", tmp_path / "plain.yaml"
    run_pgdpo("init", "wan21_1.3b", plain, "--path", whole_wan, "--gpus", 2)
    from pgdpo.planning.hardware import machine
    from pgdpo.planning.plan import Planner

    config = load_config(plain)
    on = machine(gpus=2, nodes=1, name="H100", memory_gb=None, mfu=0.35, disk_gb_per_s=1.0)
    peak = Planner(config).plan(config, on).memory.peak
    share = on.usable / on.memory
    run_pgdpo(
        "init",
        "wan21_1.3b",
        small,
        "--path",
        whole_wan,
        "--gpus",
        2,
        "--gpu-memory",
        0.9 * peak / share / 1e9,
    )
    changed = load_config(small)
    assert changed.model_dump(exclude={"output_dir"}) != config.model_dump(exclude={"output_dir"})
    tight = machine(
        gpus=2, nodes=1, name="H100", memory_gb=0.9 * peak / share / 1e9, mfu=0.35, disk_gb_per_s=1.0
    )
    assert Planner(changed).plan(changed, tight).fits


def test_an_unknown_model_is_refused_with_the_list(tmp_path):
    with pytest.raises(InputError, match="MODEL is 'wan3'; there are cogvideox_2b, "):
        run_pgdpo("init", "wan3", tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.steps", 5), ("train.zero_stage", 3), ("train.offload_optimizer", "cpu"), ("name", "a: b"),
     ("make.seed", 4), ("data.train", "x # y.jsonl")],
)  # fmt: skip
def test_one_key_is_set_and_the_rest_stays(key, value):
    text = shipped_configs()["wan21_1.3b.yaml"].read_text()
    before, after = yaml.safe_load(text), yaml.safe_load(set_key(text, key, value))
    *section, name = key.split(".")
    node = before.setdefault(section[0], {}) if section else before
    node[name] = value
    assert after == before
    assert set_key(text, key, value).count("#") >= text.count("#")


def test_a_file_of_a_shipped_name_hides_nothing(tmp_path, monkeypatch, tiny_wan):
    """A first `init` under the shipped name, then another; each from what ships, not from what lies in the folder."""
    monkeypatch.chdir(tmp_path)
    known = models()
    for model in ("wan21_1.3b", "wan21_14b"):
        run_pgdpo("init", model, f"{model}.yaml", "--path", tiny_wan, "--gpu", "H100")
    assert models() == known
    (tmp_path / "wan21_1.3b.yaml").write_text("output_dir: mine\n")
    run_pgdpo("init", "wan21_1.3b", "again.yaml", "--path", tiny_wan, "--gpu", "H100")
    assert "`pgdpo objectives` lists the others" in (tmp_path / "again.yaml").read_text()


def test_a_shipped_study_starts_from_the_shipped_base(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("not: mine\n")
    _, runs = load_study("study.yaml")
    assert runs["dpo"][0].model.path == "toy"
    with pytest.raises(InputError, match="unknown key `not`"):
        load_config("quickstart.yaml")  # a file that is named is the one that is there
    assert "not the one that ships" in " ".join(capsys.readouterr().out.split())
    own = tmp_path / "own"
    own.mkdir()
    (own / "study.yaml").write_text("output_dir: x\nbase: base.yaml\nseeds: [0]\nobjectives: {dpo: {}}\n")
    (own / "base.yaml").write_text(
        shipped_configs()["quickstart.yaml"].read_text().replace("steps:", "steps: 7 #", 1)
    )
    _, runs = load_study(own / "study.yaml")
    assert runs["dpo"][0].train.steps == 7


def test_quickstart_runs_what_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("not: mine\n")
    started = []
    monkeypatch.setattr("pgdpo.pipeline.run_quickstart", started.append)
    run_pgdpo("quickstart")
    assert started[0].model.path == "toy"
    with pytest.raises(InputError, match="unknown key `not`"):
        run_pgdpo("quickstart", "--config", "quickstart.yaml")
