"""The Python interface is typed: what the README shows passes mypy, and a wrong call does not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def mypy(tmp_path, code: str) -> str:
    """What mypy says of `code`, with the types that pgdpo declares."""
    (tmp_path / "code.py").write_text(code, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--follow-imports",
        "silent",
        "--config-file",
        ROOT / "pyproject.toml",
        "--cache-dir",
        tmp_path / "cache",
    ]
    return subprocess.run([*command, tmp_path / "code.py"], capture_output=True, text=True, cwd=ROOT).stdout


def test_the_readmes_lines_have_types(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "Trainer" in b)
    said = mypy(tmp_path, block + "\nreveal_type(config)\nreveal_type(last_checkpoint)\n")
    assert 'Revealed type is "pgdpo.settings.Config"' in said and 'Revealed type is "pathlib.Path"' in said
    assert "Success" in said, said


@pytest.mark.parametrize(
    "call", ["load_config(3)", 'Trainer("quickstart.yaml")', "Trainer(load_config('x')).train(steps=3)"]
)
def test_a_wrong_call_is_an_error(tmp_path, call):
    said = mypy(tmp_path, f"from pgdpo import Trainer, load_config\n{call}\n")
    assert "code.py:2: error" in said, said
