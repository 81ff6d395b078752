"""What the README tells a newcomer to type works, and what it points to is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.worlds import run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_python_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    config["data"]["toy"] = {"train_pairs": 16, "held_out_pairs": 2}  # the same in fewer pairs
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    run_pgdpo("prepare", "quickstart.yaml")
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "runs/quickstart/pg_dpo/checkpoints/step-00000002/manifest.json").is_file()


def test_links_and_the_file_structure_exist():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
    structure = README.split("## File structure")[1].split("```")[1]
    rooms = re.findall(r"^  (\w+)/ ", structure, re.MULTILINE)
    assert len(rooms) >= 7
    for room in rooms:
        assert (ROOT / "pgdpo" / room).is_dir(), room


def test_help_and_import_need_no_torch():
    code = (
        "import sys, contextlib, pgdpo\n"
        "from pgdpo.cli import app\n"
        "with contextlib.suppress(SystemExit): app(['--help'])\n"
        "heavy = {'torch', 'diffusers', 'deepspeed', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for command in ("prepare", "train", "evaluate", "export", "quickstart"):
        assert command in done.stdout


def test_the_top_level_is_what_was_agreed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()}
    assert {name for name in top if not name.startswith(".")} == {
        "kernels", "pgdpo", "benchmarks", "tests", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE"
    }  # fmt: skip
    assert not (ROOT / "kernels" / "__init__.py").exists()
