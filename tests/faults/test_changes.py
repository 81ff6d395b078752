"""Fault 19: a resumed run says what changed and refuses what would falsify it; and a run's folder explains itself."""

import json
import re
import shutil

import pytest
import yaml

from pgdpo.messages.errors import InputError
from tests.worlds import run_pgdpo, save_tiny_wan

pytestmark = pytest.mark.usefixtures("eager_kernels")


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A configuration and its finished run of 2 steps."""
    from tests.worlds import share_pairs, write_config

    folder = tmp_path_factory.mktemp("trained")
    output = share_pairs(folder, world)
    config = write_config(folder / "config.yaml", output, world / "tiny_wan", train={"steps": 2})
    run_pgdpo("train", config)
    return config


UNSAFE = {
    "train.learning_rate": ("1e-4", "0.001", "0.0001"),
    "train.seed": ("1", "0", "1"),
    "objective.beta": ("100", "500.*", "100.*"),
    "diffusion.shift": ("3.0", "1.0", "3.0"),
    "train.global_batch_groups": ("8", "4", "8"),
    "model.adapter.alpha": ("8", "4.*", "8.*"),
}


def test_unsafe_changes_are_refused_unless_allowed(trained, tmp_path, tally):
    run_dir, refused = trained.parent / "out" / "dpo", 0
    before = (run_dir / "config.yaml").read_text()
    for key, (value, old, new) in UNSAFE.items():
        with pytest.raises(InputError) as caught:
            run_pgdpo("train", trained, "--resume", f"{key}={value}")
        pattern = rf"dpo: its {key} is {old}, the command line says {new}: .*--allow-change {key}"
        refused += re.search(pattern, str(caught.value)) is not None
    assert (run_dir / "config.yaml").read_text() == before  # a refused start writes nothing
    copy = shutil.copytree(run_dir, run_dir.with_name("allowed"))
    run_pgdpo(
        "train", trained, "--resume", "name=allowed", "train.learning_rate=1e-4", "train.steps=4",
        "--allow-change", "train.learning_rate",
    )  # fmt: skip
    rows = [json.loads(line) for line in (copy / "events.jsonl").read_text().splitlines()]
    changed = [row["message"] for row in rows if row["event"] == "changed"]
    assert "train.learning_rate: 0.001 -> 0.0001" in changed and "train.steps: 2 -> 4" in changed
    tally(19, len(UNSAFE), refused)


def test_other_weights_or_data_under_the_same_name_are_seen(trained, world, tmp_path):
    other = save_tiny_wan(tmp_path / "other")
    index = other / "transformer" / "diffusion_pytorch_model.safetensors"
    index.write_bytes(index.read_bytes()[:-1] + b"\x3c")
    with pytest.raises(InputError, match="its model_hash is .*--allow-change model_hash"):
        run_pgdpo("train", trained, "--resume", f"model.path={other}")
    moved = tmp_path / "moved"
    shutil.copytree(world / "tiny_wan", moved)
    run_pgdpo("train", trained, "--resume", f"model.path={moved}")  # elsewhere, and the same
    output = tmp_path / "out"
    shutil.copytree(trained.parent / "out" / "dpo", output / "dpo")
    run_pgdpo("prepare", trained, f"output_dir={output}", "data.toy.seed=5")
    with pytest.raises(InputError, match="its data_hash is"):
        run_pgdpo("train", trained, "--resume", f"output_dir={output}", "data.toy.seed=5")


def test_the_end_of_a_schedule_is_part_of_the_curve(trained):
    with pytest.raises(InputError, match="its train.schedule is 'constant'.*its train.steps is 2") as caught:
        run_pgdpo("train", trained, "--resume", "train.schedule=cosine", "train.steps=9")
    assert "--allow-change train.steps" in str(caught.value)


def test_a_runs_folder_explains_itself(trained):
    run_dir = trained.parent / "out" / "dpo"
    about = json.loads((run_dir / "run.json").read_text())
    assert {"torch", "deepspeed", "diffusers", "pgdpo", "python"} <= set(about["versions"])
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", about["git_commit"])
    assert {"model_hash", "data_hash", "ranks", "host", "command"} <= set(about)
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["train"]["learning_rate"] == 1e-3
    assert json.loads((run_dir / "events.jsonl").read_text().splitlines()[0])["event"] == "started"
