"""The Python interface is typed: what the README shows passes mypy, and a wrong call does not."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """`mypy(code)`: what mypy says of it, with the types that pgdpo declares; it reads those once for all."""
    folder = tmp_path_factory.mktemp("mypy")
    options = ["--follow-imports", "silent", "--config-file", ROOT / "pyproject.toml"]
    command = [sys.executable, "-m", "mypy", *options, "--cache-dir", folder / "cache", folder / "code.py"]

    def check(code: str) -> str:
        (folder / "code.py").write_text(code, encoding="utf-8")
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout

    return check


def test_the_readmes_lines_have_types(mypy):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "Trainer" in b)
    said = mypy(block + "\nreveal_type(config)\nreveal_type(last_checkpoint)\n")
    assert (
        'Revealed type is "pgdpo.config.config.Config"' in said and 'Revealed type is "pathlib.Path"' in said
    )
    assert "Success" in said, said


@pytest.mark.parametrize(
    "call", ["load_config(3)", 'Trainer("quickstart.yaml")', "Trainer(load_config('x')).train(steps=3)"]
)
def test_a_wrong_call_is_an_error(mypy, call):
    said = mypy(f"from pgdpo import Trainer, load_config\n{call}\n")
    assert "code.py:2: error" in said, said
