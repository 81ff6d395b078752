"""A run is what its record says: whatever names it, whatever was changed in the file or typed since."""

import ctypes
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from pgdpo.checkpoints.record import COMMANDS, PLACES, dumped
from pgdpo.checkpoints.runs import open_run, resumed_config, run_config
from pgdpo.config import options
from pgdpo.config.read import covered
from pgdpo.messages.errors import InputError
from tests.worlds import copy_beside, eagerly, losses, run_pgdpo, share_pairs, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")

# Typed when the run was trained, against a file that says otherwise; a key of every group that a run fixes.
TYPED = {
    "model.adapter.alpha": 8.0,  # the file: 4
    "objective.beta": 11,  # 500
    "diffusion.shift": 3.0,  # nothing, 1.0 by default
    "data.caption_dropout": 0.25,  # nothing, 0.0
    "train.learning_rate": 2e-3,  # 1e-3
    "train.cached_draws": 2,  # nothing, 4
}
KEYS = [key for key, _ in options.keys()]  # noqa: SIM118 (a function)
STEPS = ["train.steps=3", "train.checkpoint_every=1", "train.keep_checkpoints=3"]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A configuration file, and a run `al` of three steps, trained with other values than the file's."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder / "toy.yaml", share_pairs(folder, world), world / "tiny_wan")
    with eagerly():
        run_pgdpo("train", config, "name=al", *STEPS, *typed(TYPED))
    return config


@pytest.fixture
def al(trained, tmp_path):
    """A copy of that run for a test that changes it."""
    return copy_beside(trained.parent / "out" / "al", tmp_path.name)


def typed(values: dict) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def run_dir(trained: Path) -> Path:
    return trained.parent / "out" / "al"


def other_value(field_value):
    """A value that differs, for keys that take a number or a switch; None for the others."""
    if isinstance(field_value, bool):
        return not field_value
    if isinstance(field_value, int):
        return field_value + 1
    if isinstance(field_value, float):
        return field_value * 0.5 if field_value else 0.125
    return None


# --- the commands of "what happens today" -----------------------------------------------------------------------------


def test_an_export_has_the_strength_that_was_trained(trained, al, capfd):
    """`train ... model.adapter.alpha=64`, `export ...` gave alpha 16, a quarter of its strength, and exit code 0."""
    run_pgdpo("export", trained, f"name={al.name}")
    with safe_open(al / "export" / "pytorch_lora_weights.safetensors", "np") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert metadata["transformer.lora_alpha"] == TYPED["model.adapter.alpha"]
    card = (al / "export" / "README.md").read_text()
    assert '"beta": 11' in card and "alpha 8" in card and "3 of 4 pairs" in card
    said = " ".join(capfd.readouterr().out.split())
    assert "not as toy.yaml says" in said and "model.adapter.alpha 8.0 (4.0)" in said


def test_evaluate_scores_and_names_the_model_that_was_trained(trained, al):
    run_pgdpo("evaluate", trained, f"name={al.name}", "evaluate.num_prompts=1")
    results = json.loads((al / "results.json").read_text())
    assert results["beta"] == 11 and results["settings"]["num_prompts"] == 1 and len(results["samples"]) == 1
    assert "alpha 8" in (al / "report.html").read_text()
    by_folder = al.with_name(f"{al.name}-again")
    shutil.copytree(al, by_folder)
    run_pgdpo("evaluate", by_folder, "evaluate.num_prompts=1")
    again = json.loads((by_folder / "results.json").read_text())
    assert again["samples"] == results["samples"] and again["displacement"] == results["displacement"]


def test_reference_and_resume_go_by_the_record(trained, al):
    run_pgdpo("reference", trained, f"name={al.name}")
    keys = [
        json.loads(path.read_text()) for path in (trained.parent / "out" / "reference").glob("*/key.json")
    ]
    assert [key["diffusion.shift"] for key in keys] == [3.0] and keys[0]["data.caption_dropout"] == 0.25
    run_pgdpo("train", trained, f"name={al.name}", "--resume", "train.steps=5")
    run_pgdpo("train", trained, f"name=straight-{al.name}", *STEPS, *typed(TYPED), "train.steps=5")
    assert losses(al.parent, al.name) == losses(al.parent, f"straight-{al.name}")


# --- every command x every group of keys ------------------------------------------------------------------------------

COMMAND_LINES = {
    "train": ("--resume",),
    "reference": (),
    "evaluate": (),
    "export": (),
    "report": (),
    "curate": ("--implicit-rewards",),
}
GROUPS = {
    "model.adapter.alpha": "16.0",
    "model.adapter": "null",
    "model.family": "ltx",
    "objective.beta": "500",
    "objective.name": "ipo",
    "diffusion.shift": "1.0",
    "data.caption_dropout": "0.0",
    "data.num_frames": "8",
    "train.seed": "7",
    "train.precision": "bf16",
    "train.learning_rate": "0.001",
}


@pytest.mark.parametrize("command", COMMAND_LINES)
@pytest.mark.parametrize("key", GROUPS)
@pytest.mark.parametrize("by", ["file", "folder"])
def test_a_typed_key_that_contradicts_the_record_is_refused(trained, command, key, by):
    """By both values and the way out, before anything is loaded, and nothing is written."""
    run = run_dir(trained)
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    named = (trained, "name=al") if by == "file" else (run,)
    with pytest.raises(InputError) as refused:
        run_pgdpo(command, *named, f"{key}={GROUPS[key]}", *COMMAND_LINES[command])
    assert f"its {key}" in str(refused.value) or (key == "model.family" and "key" in str(refused.value))
    assert "leave that out" in str(refused.value) or key == "model.family"
    assert before == sorted(path.stat().st_mtime_ns for path in run.rglob("*"))


def test_every_key_that_is_typed_is_taken_or_refused(trained):
    """None is silent: the configuration has the value, or the refusal names the key."""
    record = dumped(run_config(run_dir(trained)))
    taken, refused = [], []
    for key in KEYS:
        if key not in record or other_value(record[key]) is None:
            continue
        value = other_value(record[key])
        try:
            config = run_config(run_dir(trained), [f"{key}={json.dumps(value)}"])
        except InputError as error:
            assert key in str(error)
            refused.append(key)
        else:
            assert dumped(config)[key] == value
            assert covered(key, PLACES | COMMANDS), f"{key} enters a loss or a weight and was taken"
            taken.append(key)
    assert len(taken) > 15 and len(refused) > 15
    assert {"evaluate.num_prompts", "train.steps", "train.zero_stage"} <= set(taken)
    assert {"train.seed", "model.adapter.rank", "train.max_grad_norm", "train.global_batch_groups"} <= set(
        refused
    )


def test_every_key_of_the_file_is_taken_or_gives_way_and_is_named(trained, tmp_path, capfd):
    record = dumped(run_config(run_dir(trained)))
    raw = yaml.safe_load(trained.read_text()) | {"name": "al"}
    changed = {}
    for key in KEYS:
        value = other_value(record[key]) if key in record else None
        if value is None or key.startswith("data.toy"):
            continue
        alone = tmp_path / "alone.yaml"
        alone.write_text(yaml.safe_dump(with_key(raw, key, value)))
        try:
            config = run_config(alone)
        except InputError:  # no configuration at all, such as train.zero_stage 1 with train.deterministic
            continue
        said = " ".join(capfd.readouterr().out.split())
        changed[key] = dumped(config)[key] == value
        assert f" {key} " in said, f"{key} of the file: nothing was said"
        assert dumped(config)[key] in (value, record[key])
        assert changed[key] == covered(key, COMMANDS), key
    assert sum(changed.values()) > 15 and sum(not taken for taken in changed.values()) > 15


def with_key(raw: dict, key: str, value) -> dict:
    raw = json.loads(json.dumps(raw))
    *parents, leaf = key.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = value
    return raw


def test_allowed_changes_come_from_the_file_too(trained, al, tmp_path):
    raw = yaml.safe_load(trained.read_text()) | {"name": al.name}
    edited = tmp_path / "edited.yaml"
    edited.write_text(yaml.safe_dump(with_key(raw, "train.learning_rate", 5e-4)))
    assert resumed_config(edited, []).train.learning_rate == TYPED["train.learning_rate"]
    assert resumed_config(edited, [], ["train.learning_rate"]).train.learning_rate == 5e-4
    assert resumed_config(trained, [f"name={al.name}", "train.seed=3"], ["train"]).train.seed == 3
    assert resumed_config(trained, [f"name={al.name}", "model.adapter=null"], ["model"]).model.adapter is None


# --- naming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["evaluate", "export", "report"])
def test_a_name_with_no_run_is_an_error_and_makes_no_folder(trained, command):
    with pytest.raises(InputError, match=r"out/typo: no run: there are .*\bal\b"):
        run_pgdpo(command, trained, "name=typo")
    assert not (trained.parent / "out" / "typo").exists()
    with pytest.raises(InputError, match="no run: it holds .*al"):
        run_pgdpo(command, trained.parent / "out")


def test_a_folder_is_no_configuration_to_begin_with(trained):
    with pytest.raises(InputError, match="without --resume"):
        run_pgdpo("train", run_dir(trained))
    with pytest.raises(InputError, match="name=other beside the run's folder"):
        run_pgdpo("export", run_dir(trained), "name=other")


def test_a_run_that_was_moved_alone_goes_on(trained, al, tmp_path):
    """Away from its prepared data, under another name: exported, judged and trained on as before."""
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    os.rename(al, moved)
    run_pgdpo("export", moved)
    run_pgdpo("evaluate", moved, "evaluate.num_prompts=1")
    assert json.loads((moved / "results.json").read_text())["run"] == "renamed"
    run_pgdpo("train", moved, "--resume", "train.steps=4")
    assert len(losses(moved.parent, "renamed")) == 4
    assert not (trained.parent / "out" / al.name).exists()


def test_a_read_only_run_gives_its_results_elsewhere(al, tmp_path, ranks):
    """Root obeys a folder's permissions only without the capability to override them."""
    for path in (al, *al.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        [said] = ranks.call(export_and_report, str(al), str(tmp_path), ranks=1)
    finally:
        for path in (al, *al.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert "cannot be written" in said and "--out" in said
    assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert (tmp_path / "report" / "report.html").is_file()


def export_and_report(run: str, out: str) -> str:
    """In a process of its own: what the first export, which has nowhere to write, is answered."""
    give_up_overriding_permissions()
    with pytest.raises(InputError) as refused:
        run_pgdpo("export", run)
    run_pgdpo("export", run, "--out", f"{out}/lora")
    run_pgdpo("report", run, "--out", f"{out}/report")
    return str(refused.value)


def give_up_overriding_permissions() -> None:
    """capset(2): without CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER, which root has."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    assert libc.capget(header, sets) == 0
    for place in range(3):
        sets[place] &= ~0b1110
    assert libc.capset(header, sets) == 0


def test_an_export_replaces_no_files_of_others(trained, al, world):
    with pytest.raises(InputError, match="it holds .* and no earlier export"):
        run_pgdpo("export", al, "--out", world / "tiny_wan")
    assert (world / "tiny_wan" / "transformer").is_dir()


def test_other_weights_at_the_models_place_are_not_exported(trained, al, world, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(world / "tiny_wan", other)
    weights = other / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x3c")
    with pytest.raises(InputError, match="model_hash"):
        run_pgdpo("export", al, f"model.path={other}")


def test_the_record_of_another_version_is_refused_by_name(trained, al):
    for path in (al / "checkpoints").iterdir():
        shutil.rmtree(path)
    config = yaml.safe_load((al / "config.yaml").read_text())
    config["train"]["gone_since"] = 1
    (al / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"a run's record.*train\.gone_since"):
        run_pgdpo("report", al)


def test_runs_lists_what_there_is(trained, al, capfd):
    run_pgdpo("evaluate", al, "evaluate.num_prompts=1")
    (al.parent / "no_run").mkdir()
    capfd.readouterr()
    run_pgdpo("runs", trained.parent / "out")
    shown = capfd.readouterr().out
    row = next(line for line in shown.splitlines() if f"{al.name} " in line)
    assert "dpo" in row and "3/3" in row and "finished" in row and "(3)" in row and "1, 2, 3" in row
    assert "no_run" not in shown
    with pytest.raises(InputError, match="no runs below it"):
        run_pgdpo("runs", al.parent / "no_run")


# --- any step ---------------------------------------------------------------------------------------------------------


def test_every_kept_step_can_be_exported_and_judged(trained, al):
    run_pgdpo("export", al, "--step", 2)
    card = (al / "export-step-00000002" / "README.md").read_text()
    assert "2 of 4 pairs" in card and not (al / "export").exists()
    run_pgdpo("export", al)
    weights = [
        (al / folder / "pytorch_lora_weights.safetensors").read_bytes()
        for folder in ("export-step-00000002", "export")
    ]
    assert weights[0] != weights[1]
    run_pgdpo("evaluate", al, "--steps", "all", "evaluate.num_prompts=2")
    rows = [
        json.loads((al / "evaluations" / f"step-{n:08d}" / "results.json").read_text()) for n in (1, 2, 3)
    ]
    assert [row["steps"] for row in rows] == [1, 2, 3]
    assert len({row["displacement"]["excess/chosen"] for row in rows}) == 3
    references = [[s["reference"]["reward"] for s in row["samples"]] for row in rows]
    assert references[0] == references[1] == references[2]
    report = (al / "report.html").read_text()
    assert "Which step to take" in report and "The 3 steps" in report
    assert json.loads((al / "results.json").read_text())["steps"] == 3
    run_pgdpo("report", al, "--step", 2)
    assert "trained for 2 steps" in (al / "report.html").read_text()
    run_pgdpo("export", al, "--step", 2)
    assert "Measured after step 2" in (al / "export-step-00000002" / "README.md").read_text()


def test_one_step_evaluated_alone_is_as_among_all(trained, al):
    run_pgdpo("evaluate", al, "--steps", "1,2", "evaluate.num_prompts=2")
    among = json.loads((al / "evaluations/step-00000002/results.json").read_text())
    run_pgdpo("evaluate", al, "--step", 2, "evaluate.num_prompts=2")
    alone = json.loads((al / "evaluations/step-00000002/results.json").read_text())
    for name in ("samples", "displacement", "win_rate", "reward"):
        assert among[name] == alone[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step", 7), "no checkpoint of step 7: there are 1, 2, 3"),
        (("--steps", "1,x"), "expected `all`, or steps such as 100,200,best"),
        (("--step", 1, "--steps", "all"), "--step and --steps are both given"),
    ],
)
def test_a_step_that_is_not_there_is_named(trained, arguments, message):
    with pytest.raises(InputError, match=message):
        run_pgdpo("evaluate", run_dir(trained), *arguments)


def test_a_run_goes_on_from_an_earlier_step_and_loses_nothing(trained, al):
    straight = losses(al.parent, al.name)
    run_pgdpo("evaluate", al, "evaluate.num_prompts=1")
    run_pgdpo("train", al, "--resume", "--step", 1)
    assert losses(al.parent, al.name) == straight
    aside = al / "set-aside-1"
    kept = {str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_dir()}
    assert {"checkpoints/step-00000002", "checkpoints/step-00000003", "evaluations/step-00000003"} <= kept
    assert (aside / "metrics.jsonl").is_file() and not (al / "results.json").exists()
    events = [json.loads(line)["event"] for line in (al / "events.jsonl").read_text().splitlines()]
    assert "went back" in events
    assert open_run(al).step == 3
    with pytest.raises(InputError, match="--step is given without --resume"):
        run_pgdpo("train", trained, "--step", 1)


def test_multiples_of_keep_every_stay(config_file):
    run_pgdpo(
        "train", config_file, "train.steps=7", "train.checkpoint_every=1", "train.keep_checkpoints=2",
        "train.keep_every=3", "data.workers=0",
    )  # fmt: skip
    kept = sorted(path.name for path in (config_file.parent / "out/dpo/checkpoints").glob("step-*"))
    assert kept == ["step-00000003", "step-00000006", "step-00000007"]
    with pytest.raises(InputError, match="train.keep_every is 3, no multiple of train.checkpoint_every"):
        run_pgdpo("train", config_file, "name=other", "train.keep_every=3", "train.checkpoint_every=2")
