"""The house: imports point down the list of rooms, none leads back, no file and no folder outgrows its reader."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.imports import ROOT, circles, imported, modules

# From the top down: a module imports from its own room and from those below it.
ROOMS = tuple(
    room
    for group in (
        "__main__ cli",
        "checking making recipes",
        "evaluation report",
        "training sampling",
        "guards checkpoints",
        "planning engine reference",
        "data models",
        "ranks toy video diffusion",
        "config rows objectives files messages",
        "plugins version",
    )
    for room in group.split()
)

LINES = 400
FILES = 13  # in a folder; more where each is one of a kind
OF_A_KIND = {"pgdpo/objectives/formulas", "configs"}


def room_of(module: str) -> str:
    return f"{module}.".split(".")[1] or "__main__"  # the package itself is a front, as the command line is


def upward(arrows: dict[str, set[str]]) -> list[str]:
    """Imports of a room from one above it."""
    place = {room: number for number, room in enumerate(ROOMS)}
    return [
        f"{module} imports {other}"
        for module, others in sorted(arrows.items())
        for other in sorted(others)
        if place[room_of(other)] < place[room_of(module)]
    ]


@pytest.fixture(scope="module")
def arrows():
    return {module: imported(module, modules()) for module in modules()}


@pytest.mark.quick
def test_every_room_is_on_the_list(arrows):
    assert {room_of(module) for module in arrows} == set(ROOMS)


@pytest.mark.quick
def test_imports_point_down(arrows):
    assert upward(arrows) == []


@pytest.mark.quick
def test_no_import_leads_back(arrows):
    assert circles(arrows) == []


@pytest.mark.quick
def test_the_kernels_know_nothing_of_the_trainer():
    kernels = modules("pgdpo_kernels", ROOT / "kernels")
    assert circles({module: imported(module, kernels) for module in kernels}) == []
    assert not any("pgdpo." in file.read_text(encoding="utf-8") for file in kernels.values())


@pytest.mark.quick
def test_an_arrow_up_and_a_circle_are_seen(tmp_path):
    """A house with one fault of each kind, each hidden in another form of import."""
    for name, text in {
        "__init__": "",
        "data/__init__": '"""A room."""\n',
        "data/rows": "def late():\n    from pgdpo.training import loop\n",
        "training/__init__": "",
        "training/loop": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import step\n",
        "training/step": "import pgdpo.training.loop\nHOME = 'pgdpo.data.rows:late'\n",
        "data/formats": "import importlib\ndef of(name):\n    importlib.import_module(f'pgdpo.training.{name}')\n",
    }.items():
        file = tmp_path / "pgdpo" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    known = modules("pgdpo", tmp_path)
    found = {module: imported(module, known) for module in known}
    assert upward(found) == [
        "pgdpo.data.formats imports pgdpo.training.loop",
        "pgdpo.data.formats imports pgdpo.training.step",
        "pgdpo.data.rows imports pgdpo.training.loop",
    ]
    assert circles(found) == [["pgdpo.data.rows", "pgdpo.training.loop", "pgdpo.training.step"]]


@pytest.fixture(scope="module")
def files():
    """Every file of the checkout that is written by hand."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    made = ("benchmarks/results/", "tests/assets/", "pgdpo/assets/")
    found = [Path(name) for name in listed if name and not name.startswith(made) and (ROOT / name).is_file()]
    return found or pytest.skip("no git here: the files of a checkout are not known")


def test_no_file_outgrows_its_reader(files):
    code = [file for file in files if file.suffix in (".py", ".jinja", ".sh", ".yaml")]
    lines = {file: len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in code}
    assert {str(file): count for file, count in lines.items() if count > LINES} == {}


def test_no_folder_outgrows_its_reader(files):
    rooms = [file.parent for file in files if file.parts[0] in ("pgdpo", "kernels", "benchmarks", "configs")]
    counts = {str(folder): rooms.count(folder) for folder in set(rooms) if str(folder) not in OF_A_KIND}
    assert {folder: count for folder, count in counts.items() if count > FILES} == {}


def test_no_merge_is_left_half_done(files):
    marks = tuple(mark * 7 + " " for mark in "<>|")
    found = {
        f"{file}:{number}"
        for file in files
        if file.suffix in (".py", ".md", ".jinja", ".sh", ".yaml", ".toml")
        for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), start=1)
        if line.startswith(marks)
    }
    assert found == set()


@pytest.mark.quick
def test_a_configuration_reads_the_families_without_their_libraries():
    code = (
        "import sys; from pgdpo.config import families, family_class; classes = [*map(family_class, families())]; "
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
