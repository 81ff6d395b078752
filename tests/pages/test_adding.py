"""The pages on adding a thing are true: what they add, registered where they say, passes the tests that they name."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from pgdpo.evaluation.rewards import open_reward
from pgdpo.messages.errors import InputError
from tests.pages.adding import add, fill, install, run_in_copy
from tests.pages.book import PLACED, ROOT, blocks, pages
from tests.worlds import share_pairs, write_config

OBJECTIVE, MODEL, JUDGE, IMPORTER = (
    f"pgdpo/{room}/README.md" for room in ("objectives", "models", "evaluation", "rows/importers")
)
KERNEL = "kernels/ADDING.md"
ADDING = (OBJECTIVE, MODEL, KERNEL, JUDGE, IMPORTER)
SLOW = ("tests/sampling/test_sampling.py", "tests/training/test_trained_objectives.py")


@pytest.fixture(scope="module")
def commands(copy):
    """The copy gets what all pages add; page -> its commands."""
    fill(copy)
    return {page: add(page, copy) for page in ADDING}


@pytest.fixture(scope="module")
def copy(tmp_path_factory, world):
    """A copy of the checkout, with the toy world under the name that the pages give it, in few pairs and steps."""
    folder = tmp_path_factory.mktemp("copy")
    write_config(
        folder / "quickstart.yaml", share_pairs(folder, world), world / "tiny_wan", train={"steps": 2}
    )
    return folder


@pytest.fixture
def run(copy, ranks):
    """`run(commands)`: what they print. In a process that has imported all else, and imports the copy's modules."""

    def run(commands: list[str]) -> str:
        assert commands
        job = ranks.start(function=run_in_copy, arguments=(str(copy), commands), ranks=1)
        job.succeed(timeout=240)
        return job.text(0)

    return run


def test_what_the_pages_add_reads_like_the_code_around(commands, copy):
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", "-q", "."]
        done = subprocess.run(ruff, cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def quick(commands: list[str]) -> list[str]:
    return [command for command in commands if not any(name in command for name in SLOW)]


def test_the_objective(commands, run):
    trained = "pgdpo train quickstart.yaml name=hinged 'objective={name: squared_hinge, beta: 500}'"
    said = run([*quick(commands[OBJECTIVE]), trained])
    assert "max(0, c − z)²" in said and "step-00000002" in said


def test_the_model(commands, run):
    run(quick(commands[MODEL]))


def test_a_family_is_one_file_and_a_configuration():
    """And in the tests a line of `KINDS`, with the function that saves its pipeline."""
    placed = [PLACED.fullmatch(block.heading) for block in blocks(MODEL, pages()[MODEL])]
    touched = [place["file"] for place in placed if place]
    ours = {file for file in touched if not file.startswith("tests/")}
    assert ours == {"pgdpo/models/families/skyreels_v2.py", "configs/skyreels_v2.yaml"}
    tested = {file: touched.count(file) for file in touched if file not in ours}
    assert tested == {"tests/models/tiny_skyreels.py": 1, "tests/models/families.py": 2}  # with its import


@pytest.mark.slow
@pytest.mark.parametrize("page", [OBJECTIVE, MODEL])
def test_what_takes_longer(page, commands, run):
    run([command for command in commands[page] if command not in quick(commands[page])])


def test_the_kernel(commands, copy):
    """In a process of its own, where Triton's interpreter is on from the beginning."""
    code = f"from tests.pages.adding import run_in_copy\nrun_in_copy({str(copy)!r}, {commands[KERNEL]!r})"
    environment = {
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": "1",
        "HOME": str(copy),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=240
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = json.loads((copy / "gpu-run" / "result.json").read_text())["rows"]
    assert {row["op"] for row in rows} == {"denoised"} and all(row["us"]["fused"] > 0 for row in rows)


def test_the_judge(commands, copy, run):
    run(["pgdpo train quickstart.yaml", *commands[JUDGE]])
    results = json.loads((copy / "out" / "dpo" / "results.json").read_text())
    assert set(results["reward"]["aligned"]) == {"total", "mean"} and results["win_rate"]["samples"] == 2


def test_a_bad_judge_is_named_as_the_page_says(commands, copy, monkeypatch):
    monkeypatch.syspath_prepend(install(copy / "my_judges"))
    rows = re.findall(r"^\| `(my_\S+)` \| (.+) \|$", pages()[JUDGE], re.MULTILINE)
    assert len(rows) == 3
    for name, said in rows:
        with pytest.raises(InputError) as caught:
            open_reward(name)
        assert str(caught.value).startswith(said)
    sys.modules.pop("my_judges")


def test_the_importer(commands, copy, world, run):
    clips = sorted((world / "out" / "toy").rglob("*.mp4"))
    (copy / "clips").mkdir()
    for clip, name in zip(clips, ("1-a", "1-b", "2-a", "2-b"), strict=False):
        shutil.copy(clip, copy / "clips" / f"{name}.mp4")
    said = run(commands[IMPORTER])
    rows = [json.loads(line) for line in (copy / "train.jsonl").read_text().splitlines()]
    assert [(row["chosen"], row["preference"]) for row in rows] == [
        ("clips/1-a.mp4", 0.75),
        ("clips/2-b.mp4", 1),
    ]
    assert "2 sound rows in train" in said
