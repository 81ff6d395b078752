"""Every command line of the pages is run in a small world, or parsed by its own parser; nothing is passed over.

`my_run.yaml`, `my_lists.yaml` and `quickstart.yaml` are the toy world's there, in few pairs and steps; torchrun's part
is parsed and what it starts is run on one rank. The commands of the pages on adding a thing are test_adding.py's.
"""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import typer

from pgdpo.cli import app
from pgdpo.config.read import load_config, shipped_configs
from tests.models.families import KINDS
from tests.pages.book import ROOT, all_blocks, commands, is_command, pages
from tests.pages.test_adding import ADDING
from tests.rows.importer_samples import videoalign
from tests.worlds import write_config

COMMANDS = typer.main.get_command(app).commands
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
# Commands of pgdpo that are only parsed, down to their options and configuration keys.
PARSED = {
    "quickstart": "two minutes; .ci/run runs it as it stands",
    "doctor": "examines the machine for half a minute; .ci/run runs it, tests/checking/test_doctor.py its parts",
    "plan": "traces a large model; .ci/run runs it, tests/planning plans small ones",
    "bench": "times a GPU; .ci/run runs it",
    "study": "trains many runs; tests/evaluation/test_study.py runs a small one",
}
# What these start is only parsed too: other nodes are not here; tests/cli/test_cluster.py starts each with stubs.
LAUNCHERS = "configs/cluster/"
# The order of a run's life: what a command needs is made by those before it.
LIFE = (
    *("import", "init", "make", "check", "prepare", "curate", "reference"),
    *("train", "evaluate", "export", "report", "runs", "options", "objectives", "version"),
)
# The one block that is none of commands: what the first import reads.
TABLE = "prompt,video_1,video_2,winner\n"
SLOW = ("init",)  # traces a large model
BOTH = "wan22_a14b"  # a recipe by its name, and its runs: a tiny pipeline of two experts


def found() -> list[tuple[str, list[str]]]:
    """(page and line, words) of each command line of the pages."""
    listed = [block for block in all_blocks("") if block.page not in ADDING]
    return [(str(block), words) for block in listed for words in commands(block) if is_command(words)]


def pgdpo_words(words: list[str]) -> list[str] | None:
    """What `pgdpo` gets, by whatever program it is started; None for other commands."""
    if words[0] == "pgdpo":
        return words[1:]
    if words[0] in ("python", "torchrun") and "-m" in words:
        at = words.index("-m")
        return words[at + 2 :] if words[at + 1] == "pgdpo" else None
    script = next((place for place, word in enumerate(words) if word.startswith(LAUNCHERS)), None)
    return None if script is None else words[script + 1 :]


def parsed(words: list[str]) -> tuple[str, dict]:
    """(command, its parameters). Raises typer's UsageError for an option or argument that is none."""
    name, *arguments = words
    return name, COMMANDS[name].make_context(name, arguments).params


OF_PGDPO = [(where, words) for where, words in found() if pgdpo_words(words)]
OTHERS = [(where, words) for where, words in found() if not pgdpo_words(words)]


@pytest.mark.quick
def test_no_command_hides_in_a_block_of_something_else():
    for block in all_blocks(""):
        kinds = {is_command(words) for words in commands(block)}
        assert len(kinds) == 1, f"{block}: commands and other lines in one block"
        assert kinds == {True} or block.text.startswith(TABLE), f"{block}: no command that a test knows"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("where", "words"), OF_PGDPO, ids=lambda value: value if isinstance(value, str) else None
)
def test_options_and_keys_are_known(where, words):
    name, given = parsed(pgdpo_words(words))
    file = given.get("config") or given.get("run")
    ships = file and ((ROOT / file).is_file() or file in shipped_configs())
    changes = [word for word in given.get("overrides") or () if "=" in word]  # `report` takes other runs, too
    if changes:
        load_config(file if ships else "quickstart.yaml", changes)
    assert not (file or "").startswith("configs/") or ships, f"{file} does not ship"
    assert name in LIFE or name in PARSED, f"{name} is neither run nor named in PARSED"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("where", "words"), OTHERS, ids=lambda value: value if isinstance(value, str) else None
)
def test_other_commands_are_what_ci_runs_or_have_what_they_name(where, words, monkeypatch, pytestconfig):
    program, *arguments = words
    if program == "pip":
        option, *kind, package = arguments
        if package == "./kernels":  # tests/kernels/test_install.py
            assert (option, kind) == ("install", []) and (ROOT / package / "pyproject.toml").is_file()
            return
        assert (option, kind) == ("install", ["-e"]) and re.search(
            r"^pip install -q -e \"?\.\[test\]", CI, re.MULTILINE
        )
        extras = re.fullmatch(r"\.(?:\[(\w+)\])?", package)
        assert extras and (extras[1] or "test") in (ROOT / "setup.py").read_text(encoding="utf-8")
    elif program == "pytest":
        assert re.search(r"^pytest ", CI, re.MULTILINE)
        known = {mark.split(":")[0] for mark in pytestconfig.getini("markers")}
        for option, value in zip(arguments, [*arguments, ""][1:], strict=True):
            if option == "-m":
                assert set(re.findall(r"\w+", value)) - {"or", "and", "not"} <= known
            elif option.startswith("tests"):
                assert (ROOT / option).exists(), option
    elif arguments[0] == "kernels/examples/run.py":  # tests/kernels/examples runs it
        assert all((ROOT / "kernels" / "examples" / name / "example.py").is_file() for name in arguments[1:])
    else:
        module = arguments[arguments.index("-m") + 1]
        assert module.startswith("benchmarks."), f"{where}: {words} is no command that a test knows"
        read_by_its_own_parser(module, arguments[arguments.index("-m") + 2 :], monkeypatch)


def read_by_its_own_parser(module: str, arguments: list[str], monkeypatch) -> None:
    """The options of a benchmark, without the benchmark: its times belong to no test."""
    main = importlib.import_module(f"{module}.__main__")
    told = {}
    monkeypatch.setattr(main, "run", lambda **options: told.update(options) or 0)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    assert main.main() == 0 and told


@pytest.mark.quick
@pytest.mark.parametrize("page", pages())
def test_commands_in_sentences_and_tables_are_there(page):
    text = pages()[page]
    for name in re.findall(r"`pgdpo ([a-z]+)\b", text):
        assert name in COMMANDS, f"pgdpo {name}"
    for module in re.findall(r"python -m ((?:benchmarks|tests|pgdpo)[a-z0-9_.]*)(?![A-Z])\b", text):
        assert importlib.util.find_spec(module), module


@pytest.fixture
def small_world(world, tmp_path, monkeypatch, eager_kernels, traced_once):
    """A folder in which the pages' files lie, in which the commands run."""
    toy = world / "out" / "toy"
    for split, count in (("train", 4), ("held_out", 1)):
        rows = [
            json.loads(line) for line in (toy / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        rows = [
            row | {side: str((toy / row[side]).resolve()) for side in ("chosen", "rejected")} for row in rows
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    of_pairs = {"train": "train.jsonl", "held_out": "held_out.jsonl", "media_root": str(toy.resolve())}
    of_lists = {"train": "data/lists.jsonl", "held_out": None}
    for name, data in (
        ("my_run.yaml", of_pairs),
        ("quickstart.yaml", of_pairs),
        ("my_lists.yaml", of_lists),
    ):
        write_config(
            tmp_path / name,
            tmp_path / "runs" / ("my_lists" if data is of_lists else "my_run"),
            world / "tiny_wan",
            data=data,
            train={"steps": 2, "checkpoint_every": 1, "global_batch_groups": 2},
            evaluate={"num_prompts": 1, "sampling_steps": 1, "draws_per_pair": 1, "batch": 4},
        )
    for name in ("data/clips", "downloads"):
        (tmp_path / name).mkdir(parents=True)
    table = next(block.text for block in all_blocks("") if block.text.startswith(TABLE))
    (tmp_path / "data" / "pairs.csv").write_text(table)
    clip = next(toy.rglob("*.mp4"))
    for name in re.findall(r"clips/\w+\.mp4", table):
        shutil.copy(clip, tmp_path / "data" / name)
    scored = [f"a cat asleep,clips/{clip}.mp4,{score}" for score, clip in enumerate(("1a", "2b", "1b"))]
    (tmp_path / "data" / "scored.csv").write_text("\n".join(["prompt,video,score", *scored, ""]))
    (tmp_path / "clips.jsonl").write_text(
        '{"id": "a", "prompt": "a large green square moving up", "video": "data/clips/1a.mp4"}\n'
    )
    source, _ = videoalign(tmp_path / "downloads")
    source.rename(source.with_name("train.csv"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made_small(words: list[str], number: int) -> list[str]:
    """As the page has it, but for the steps that a run of two has, and for files and runs that are there already."""
    pairs = zip(["", *words], words, strict=False)
    words = ["2" if before == "--step" and word.isdecimal() else word for before, word in pairs]
    out = {"init": 2, "import": 3}.get(words[0])
    if out and Path(words[out]).exists():
        words[out] = str(Path(words[out]).with_stem(f"file-{number}"))
    return words + (["--restart"] if words[0] == "train" and "--resume" not in words else [])


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_commands_run(slow, small_world):
    """Each once, in the order of a run's life; the slow ones with what they need."""
    here = [
        (where, words)
        for where, words in OF_PGDPO
        if not any(word.startswith(LAUNCHERS) or BOTH in word for word in words)
    ]
    lines = {tuple(pgdpo_words(words)): where for where, words in here}
    names = {"import", *SLOW} if slow else {*LIFE} - {*SLOW}
    to_run = [words for words in lines if words[0] in names]
    assert len(to_run) > (2 if slow else 12)
    for number, words in enumerate(
        sorted(to_run, key=lambda words: (LIFE.index(words[0]), "--resume" in words))
    ):
        try:
            code = app(made_small(list(words), number), standalone_mode=False)
        except Exception as error:
            raise AssertionError(f"{lines[words]}: pgdpo {' '.join(words)}: {error}") from error
        assert not code, f"{lines[words]}: pgdpo {' '.join(words)} ended with {code}"
    assert (small_world / "data" / "train.jsonl").is_file()
    [row] = (small_world / "data" / "lists.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(json.loads(row)["samples"]) == 3
    assert slow or list(small_world.glob("runs/my_lists/lpo/checkpoints/*/manifest.json"))
    assert slow or {"check.html", "report.html"} <= {file.name for file in small_world.rglob("*.html")}
    assert slow or list(small_world.rglob("pytorch_lora_weights.safetensors"))


@pytest.mark.slow
def test_the_commands_of_two_experts_run(small_world, world, saved):
    kind = KINDS["wan 2.2 t2v a14b high"]
    frames, height, width = kind.size
    config = write_config(
        small_world / f"{BOTH}.yaml",
        small_world / "runs" / BOTH,
        saved(kind.save),
        data={
            "train": "train.jsonl",
            "held_out": None,
            "media_root": str((world / "out").resolve()),
            "fps": "own",
        }
        | {"num_frames": frames, "height": height, "width": width},
        model={"encoders": "pipeline", "expert": "both"},
        objective={"name": "pg_dpo"},
        train={"steps": 2, "checkpoint_every": 1, "global_batch_groups": 2},
    )
    app(["prepare", str(config)], standalone_mode=False)
    lines = [pgdpo_words(words) for _, words in OF_PGDPO if any(BOTH in word for word in words)]
    assert len(lines) == 3
    for number, words in enumerate(lines):
        assert not app(made_small(list(words), number), standalone_mode=False), words
    assert len(list((small_world / "runs" / BOTH / "pg_dpo").glob("*_noise/checkpoints/step-00000002"))) == 2


@pytest.mark.quick
def test_torchrun_takes_its_part():
    from torch.distributed.run import get_args_parser

    started = [words for _, words in found() if words[0] == "torchrun"]
    assert started
    for words in started:
        given = get_args_parser().parse_args(words[1:])
        assert given.module and given.training_script == "pgdpo"


@pytest.mark.quick
def test_what_is_only_parsed_is_named_with_its_reason():
    """And .ci/run runs what the reason says that it runs."""
    for name, reason in PARSED.items():
        assert name in COMMANDS
        if ".ci/run runs it" in reason:
            assert re.search(rf"^(pgdpo|run) {name}\b", CI, re.MULTILINE), name


@pytest.mark.quick
def test_the_launchers_are_tested_where_they_can_be():
    scripts = {word for _, words in found() for word in words if word.startswith(LAUNCHERS)}
    tested = (ROOT / "tests" / "cli" / "test_cluster.py").read_text(encoding="utf-8")
    for script in scripts:
        assert (ROOT / script).is_file() and Path(script).name in tested, script
