"""The terminal is ours alone: what libraries print is in the run's log or nowhere, in every command."""

import re
import subprocess
import sys

import pytest
import typer

from pgdpo.cli import app
from pgdpo.cli.app import Command
from tests.cli.test_modes import of_umask
from tests.worlds import launch, write_config

# How libraries speak: xformers, transformers, DeepSpeed, warnings, loggers with a date or a level.
FOREIGN = re.compile(
    r"[xX][fF]ormers|XFORMERS|\[transformers\]|real_accelerator|^\[?\d{4}-\d\d-\d\d|WARN|\w+Warning:|^\[rank\d"
)

NOISY = """
import contextlib, logging, os, sys, warnings
from pathlib import Path
from pgdpo.cli import app, main
from pgdpo.cli.app import TOOLS, command
from pgdpo.messages.console import chatter_to, put, said_to_stderr, say
from pgdpo.messages.errors import InputError


def chatter(mark):
    os.write(1, f"C++ {mark}\\n".encode())
    os.write(2, f"C++ errors {mark}\\n".encode())
    print(f"print {mark}")
    logging.getLogger("library").warning("logger %s", mark)
    warnings.warn(f"warning {mark}")
    os.system(f"echo child {mark}")


@command(TOOLS)
def noisy(log: str = "", ending: str = "", to_stderr: bool = False):
    "A command among libraries that talk."
    with said_to_stderr() if to_stderr else contextlib.nullcontext():
        chatter("before")
        with chatter_to(Path(log)) if log else contextlib.nullcontext():
            chatter("within")
            say("ours [1]")
            if ending == "refused":
                raise InputError("a file: a key")
            if ending == "broken":
                raise OSError("no room")
        chatter("after")
        put("{}\\n")


main()
"""
SPEAKERS = ("C++", "C++ errors", "print", "logger", "child", "warning")


def noisy(*options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "always", "-c", NOISY, "noisy", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.quick
def test_what_libraries_print_is_in_the_log_from_the_first_import_on(tmp_path):
    done = noisy("--log", tmp_path / "new" / "run.log")
    assert (done.stdout, done.stderr, done.returncode) == ("ours [1]\n{}\n", "", 0)
    log = (tmp_path / "new" / "run.log").read_text()
    for speaker in SPEAKERS:
        assert 0 <= log.find(f"{speaker} before") < log.find(f"{speaker} within"), speaker
    assert "ours" not in log and "after" not in log


@pytest.mark.quick
def test_without_a_log_it_is_nowhere_and_errors_and_tracebacks_stay(tmp_path):
    done = noisy()
    assert (done.stdout, done.stderr, done.returncode) == ("ours [1]\n{}\n", "", 0)
    done = noisy("--ending", "refused", "--log", tmp_path / "new" / "run.log")
    assert (done.stdout, done.stderr, done.returncode) == ("ours [1]\n", "error: a file: a key\n", 2)
    assert not (tmp_path / "new").exists()
    done = noisy("--ending", "broken", "--log", tmp_path / "run.log")
    assert done.stdout == "ours [1]\n" and done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("OSError: no room\n")
    assert "within" in (tmp_path / "run.log").read_text()


@pytest.mark.quick
def test_lines_beside_json_go_to_standard_error():
    done = noisy("--to-stderr")
    assert (done.stdout, done.stderr) == ("{}\n", "ours [1]\n")


@pytest.mark.quick
def test_every_command_keeps_the_terminal():
    """All but the benchmarks, which start pytest."""
    commands = typer.main.get_command(app).commands
    assert [name for name, command in commands.items() if not isinstance(command, Command)] == ["bench"]


def test_a_reader_that_leaves_ends_the_command_in_silence():
    command = f"{sys.executable} -m pgdpo options | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("name  ") and done.stderr == ""


def shown_by(*arguments: object, code: int = 0) -> str:
    """What a command shows; all of it is ours."""
    done = launch(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    foreign = [line for line in done.stdout.splitlines() if FOREIGN.search(line)]
    assert foreign == [], f"pgdpo {' '.join(map(str, arguments))}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("umask", [0o022, 0o027], indirect=True, ids=oct)
def test_all_commands_on_the_toy_world(tmp_path, monkeypatch, tiny_wan, umask):
    """Each in a process of its own, the first of that folder or not: the lines are ours, the files for all to read."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    config = write_config(work / "config.yaml", work / "out", tiny_wan, train={"steps": 2})
    shown_by("version")
    shown_by("objectives")
    shown_by("objectives", "pg_dpo")
    shown_by("options", "checkpoint")
    shown_by("init", "wan21_1.3b", "mine.yaml")
    shown_by("prepare", config)
    toy = work / "out" / "toy"
    shown_by("import", "trl", toy / "train.jsonl", "imported.jsonl")
    shown_by("import", "trl", toy / "train.jsonl", "imported.parquet")
    shown_by("check", config, "--show", "check.html", "--json", "check.json")
    shown_by("plan", config)
    shown_by("curate", config, "--out", "curated.json")
    shown_by("reference", config, "train.cached_draws=1")
    shown_by("train", config)
    run = work / "out" / "dpo"
    formats = [part for name in ("diffusers", "comfyui", "merged") for part in ("--format", name)]
    shown_by("export", run, *formats)
    shown_by("evaluate", run)
    shown_by("curate", run, "--implicit-rewards")
    shown_by("report", run)
    shown_by("runs", "out")
    clips = work / "clips.jsonl"
    clips.write_text(
        "".join(
            f'{{"id": "{path.stem}", "prompt": "a large green square moving up", "video": "{path}"}}\n'
            for path in sorted(toy.glob("clips/*/*-chosen.mp4"))[:2]
        )
    )
    shown_by("make", "corrupt", config, clips, "made")
    shown_by("quickstart", "--config", config, "output_dir=quick", "train.steps=2")
    (work / "study.yaml").write_text(
        "base: config.yaml\noutput_dir: studied\nseeds: [0]\nobjectives:\n  dpo: {beta: 500}\n"
    )
    shown_by("study", "study.yaml")
    assert of_umask(work, umask) == []


@pytest.mark.slow
def test_doctor_is_ours_alone(tmp_path):
    """It names xformers itself, in its table and after it."""
    done = launch("doctor", tmp_path)
    assert done.stderr == "" and "WARNING[XFORMERS]" not in done.stdout
