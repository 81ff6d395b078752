"""A page on adding a thing, taken at its word: its blocks go into a copy of the checkout, where its commands are run.

The line above a block says where it goes: "`FILE`:" is a new file, "`FILE`, after `LINE`:" and "`FILE`, before `LINE`:"
lines beside one that is there, "`FILE`, at its end:" lines below all others.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

from tests.pages.book import PLACED, ROOT, Block, blocks, pages

COPIED = ("pgdpo", "kernels", "configs", "tests", "benchmarks", "pyproject.toml")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "results", "golden", "tables", "*.md")


def fill(folder: Path) -> None:
    """A copy of the checkout: what the pages need of it."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
        else:
            shutil.copy(ROOT / name, folder / name)


def add(page: str, folder: Path) -> list[str]:
    """Puts into a copy what a page adds. Returns the page's commands."""
    commands = []
    for block in blocks(page, pages()[page]):
        if place := PLACED.fullmatch(block.heading):
            put(folder / place["file"], block, place)
        elif not block.language:
            commands += block.text.splitlines()
    return commands


def put(file: Path, block: Block, place: re.Match) -> None:
    """A block where the line above it says. Raises AssertionError where that is no place, or taken."""
    if not place["where"] and not place["end"]:
        assert not file.exists(), f"{block}: {place['file']} is there already"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
        return
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    at, text = len(lines), "\n\n" + block.text
    if place["where"]:
        found = [number for number, line in enumerate(lines) if line.strip() == place["line"]]
        assert len(found) == 1, f"{block}: {place['file']} has {len(found)} lines `{place['line']}`"
        at, text = found[0] + (place["where"] == "after"), block.text
    file.write_text("".join([*lines[:at], text, *lines[at:]]), encoding="utf-8")


def run_in_copy(folder: str, commands: list[str]) -> None:
    """Commands of a page in the copy, for a process of its own; up to one that fails.

    `pip install -e PACKAGE` leaves what pip leaves, without pip.
    """
    os.chdir(folder)
    os.environ.setdefault(
        "PGDPO_KERNELS_BACKEND", "auto" if os.environ["TRITON_INTERPRET"] == "1" else "eager"
    )
    for name in [name for name in sys.modules if name.split(".")[0] in ("pgdpo", "tests")]:
        del sys.modules[name]
    sys.path[:0] = [folder, f"{folder}/kernels"]
    for command in commands:
        print(f"+ {command}", flush=True)
        words = [word for word in shlex.split(command) if not word.startswith("PYTHONPATH=")]
        {"pytest": _pytest, "pgdpo": _pgdpo, "python": _python, "pip": _pip}[words[0]](words[1:])


def _pytest(words: list[str]) -> None:
    import pytest

    if code := pytest.main(["-q", "-p", "no:cacheprovider", *words]):  # also where there is no such test
        raise SystemExit(int(code))


def _pgdpo(words: list[str]) -> None:
    from pgdpo.cli import app

    if code := app(words, standalone_mode=False):
        raise SystemExit(code)


def _python(words: list[str]) -> None:
    option, module, *arguments = words
    assert option == "-m"
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise


def _pip(words: list[str]) -> None:
    *options, package = words
    assert options == ["install", "-e"]
    sys.path.insert(0, install(Path(package)))


def install(package: Path) -> str:
    """What `pip install -e` leaves of a package of one module; its folder, which is then to be on the path."""
    assert (package / "pyproject.toml").is_file()
    info = package / f"{package.name}-0.1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.name}\nVersion: 0.1\n")
    (info / "top_level.txt").write_text(f"{package.name}\n")
    return str(package.absolute())
