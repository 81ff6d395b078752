"""A run that goes back, changes by permission, is damaged or moved: its records stay those of what was trained."""

import json
import shutil

import pytest
import yaml

from pgdpo.checkpoints.published import checkpoints_of
from pgdpo.checkpoints.runs import open_run, open_steps, resumed_config
from pgdpo.messages.errors import InputError
from tests.worlds import copy_beside, eagerly, losses, run_pgdpo, share_pairs, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")

RATE = ["--allow-change", "train.learning_rate", "train.learning_rate=1e-4"]
ONE = "evaluate.num_prompts=1"


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A run `a` of four steps, of which the last two had another learning rate by permission, and other samples."""
    folder = tmp_path_factory.mktemp("branches")
    config = write_config(
        folder / "toy.yaml",
        share_pairs(folder, world),
        world / "tiny_wan",
        train={"checkpoint_every": 1, "keep_checkpoints": 9},
    )
    with eagerly():
        run_pgdpo("train", config, "name=a", "train.steps=2")
        run_pgdpo(
            "train", config, "name=a", "--resume", "evaluate.sampling_steps=3", "evaluate.seed=7", *RATE
        )
    return config


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it for a test that changes it."""
    return copy_beside(trained.parent / "out" / "a", tmp_path.name)


def results_of(folder, step):
    return json.loads((folder / "evaluations" / f"step-{step:08d}" / "results.json").read_text())


def test_all_steps_are_judged_alike(run):
    """As the newest is: with its seed and sampling steps, and the reference's clips of these."""
    runs = open_steps(run, [ONE], "1,4")
    assert [each.config.evaluate for each in runs] == [runs[1].config.evaluate] * 2
    assert runs[0].config.evaluate.seed == 7 and runs[0].config.train.learning_rate == 1e-3
    run_pgdpo("evaluate", run, "--steps", "1,4", ONE)
    among = results_of(run, 4)
    assert "learning_rate: 0.0001" in (run / "report.html").read_text()  # the newest step's record
    run_pgdpo("evaluate", run, "--step", 4, ONE)
    assert results_of(run, 4)["samples"] == among["samples"]
    assert results_of(run, 1)["settings"] == among["settings"]


def test_going_back_takes_the_record_of_the_step_that_is_gone_back_to(run):
    assert resumed_config(run, [], step=2).train.learning_rate == 1e-3
    assert resumed_config(run, []).train.learning_rate == 1e-4
    run_pgdpo("train", run, "--resume", "--step", 1)
    with pytest.raises(InputError, match="--resume and --restart are both given"):
        run_pgdpo("train", run, "--resume", "--restart")


def test_another_objective_by_permission_is_the_same_run(run, tmp_path):
    alone = tmp_path / "dpo"
    shutil.copytree(run, alone)
    changed = resumed_config(alone, ["objective.name=ipo"], ["objective"])
    assert changed.run_dir == alone and changed.objective["name"] == "ipo"


def test_a_report_is_of_the_record_and_not_of_the_file_beside_it(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["objective"]["beta"], config["model"]["adapter"]["alpha"] = 987, 61
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    run_pgdpo("report", run, "--step", 2)
    page = (run / "report.html").read_text()
    assert "987" not in page and "alpha 61" not in page and "learning_rate: 0.001" in page
    (run / "config.yaml").unlink()
    run_pgdpo("report", run)
    assert "learning_rate: 0.0001" in (run / "report.html").read_text()


def test_a_card_tells_what_was_trained_and_measured_of_this_checkpoint(run):
    run_pgdpo("evaluate", run, ONE)
    run_pgdpo("export", run, "data.train=lies.jsonl")
    card = (run / "export" / "README.md").read_text()
    assert "lies" not in card and "Measured after step 4" in card
    newest = checkpoints_of(run)[-1]
    (newest / "state.json").write_text("{}")  # damaged: the run goes on from step 3, and makes another step 4
    run_pgdpo("train", run, "--resume", "--allow-change", "train.learning_rate", "train.learning_rate=0.05")
    assert not (run / "results.json").exists() and not (run / "export").exists()  # they are set aside
    run_pgdpo("export", run)
    assert "Measured" not in (run / "export" / "README.md").read_text()
    assert (run / "set-aside-1" / "export" / "README.md").is_file()


def test_sets_that_are_aside_are_never_overwritten(run):
    for _ in range(2):
        run_pgdpo("train", run, "--resume", "--step", 3)
    shutil.rmtree(run / "set-aside-1")
    (run / "evaluations" / "step-old").mkdir(parents=True)  # somebody's own
    run_pgdpo("train", run, "--resume", "--step", 3)
    assert {path.name for path in run.glob("set-aside-*")} == {"set-aside-1", "set-aside-2"}
    assert len(losses(run.parent, run.name)) == 4


def test_a_step_that_is_damaged_is_named_with_the_others(run):
    (run / "checkpoints" / "step-00000002" / "state.json").write_text("{}")
    for command in ("train", "export"):
        options = ["--resume"] if command == "train" else []
        with pytest.raises(InputError, match="step-00000002: .*take another step; there are 1, 2, 3, 4"):
            run_pgdpo(command, run, "--step", 2, *options)


def test_pairs_of_other_data_are_not_shown(run, tmp_path):
    prepared = tmp_path / "prepared"
    shutil.copytree(run.parent / "prepared", prepared)
    index = json.loads((prepared / "train" / "index.json").read_text())
    run_pgdpo("report", run)
    assert (run / "pairs.json").is_file()
    index["pairs"][0]["weight"] = 7.5  # as `prepare` writes a label down: no file is another
    (prepared / "train" / "index.json").write_text(json.dumps(index))
    run_pgdpo("report", run, f"data.prepared={prepared}")
    assert not (run / "pairs.json").exists() and "7.5" not in (run / "report.html").read_text()


def test_a_named_folder_holds_one_runs_results(trained, run, tmp_path):
    out = tmp_path / "shared"
    run_pgdpo("evaluate", run, ONE, "--out", out)
    run_pgdpo("export", run, "--out", out / "lora")
    run_pgdpo("train", trained, f"name=b-{tmp_path.name}", "train.steps=1", "objective.beta=11")
    other = trained.parent / "out" / f"b-{tmp_path.name}"
    with pytest.raises(InputError, match="it holds results of the run a-"):
        run_pgdpo("evaluate", other, ONE, "--out", out)
    with pytest.raises(InputError, match="no earlier export of this run"):
        run_pgdpo("export", other, "--out", out / "lora")
    run_pgdpo("report", other, "--out", tmp_path / "report")
    assert "Not evaluated yet" in (tmp_path / "report" / "report.html").read_text()
    run_pgdpo("evaluate", run, ONE)
    run_pgdpo("report", run, "--out", tmp_path / "beside")
    assert "Not evaluated yet" not in (tmp_path / "beside" / "report.html").read_text()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file: name a folder"):
        run_pgdpo("export", run, "--out", tmp_path / "file")


def test_a_run_is_named_by_links_its_own_record_and_dots(run, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(run)
    assert open_run(tmp_path / "link").folder == run.resolve()
    assert open_run(run / "config.yaml").folder == run.resolve()
    monkeypatch.chdir(run / "checkpoints")
    assert open_run("..").folder.name == run.name
    run_pgdpo("runs", "..")
    with pytest.raises(InputError, match="a folder's name is expected"):
        run_pgdpo("train", run.parent.parent / "toy.yaml", "name=..")


def test_one_broken_run_hides_no_other(run, capfd):
    strange = run.parent / "strange"
    (strange / "checkpoints" / "step-00000001").mkdir(parents=True)
    (strange / "results.json").write_text("{")
    run_pgdpo("evaluate", run, ONE)
    run_pgdpo("runs", run.parent)
    shown = capfd.readouterr().out
    shutil.rmtree(strange)
    assert f"{run.name} " in shown and "unreadable" in shown
    assert "results.json cannot be read" in " ".join(shown.split())


def test_tensors_that_a_change_would_drop_are_named(run):
    with pytest.raises(InputError, match="is a checkpoint of another model"):
        run_pgdpo(
            "train", run, "--resume", "train.steps=5", "model.adapter.target_modules=[to_q]",
            "--allow-change", "model.adapter.target_modules",
        )  # fmt: skip
