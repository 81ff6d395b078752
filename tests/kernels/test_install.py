"""pgdpo and pgdpo-kernels installed by pip, in every order: either can go, and the other stays whole."""

import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("pgdpo", "kernels", "configs", "README.md", "LICENSE", "setup.py", "pyproject.toml")
LITTER = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
PIP = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--no-input"]
OFFLINE = ["--no-deps", "--no-index", "--no-build-isolation"]
PAIR = ("pgdpo", "pgdpo-kernels")


def run(*command, **environment) -> str:
    """Standard output of a command that must succeed, without this run's paths and warnings."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """What a build reads of this tree, where it may leave its litter."""
    folder = tmp_path_factory.mktemp("clone")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=LITTER, symlinks=True)
        else:
            shutil.copy(ROOT / part, folder / part)
    return folder


@pytest.fixture(scope="module")
def wheels(clone, tmp_path_factory) -> dict[str, Path]:
    """Both wheels, built where an import of torch fails: no build may need one."""
    pytest.importorskip("pip")
    folder, poison = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("poison")
    (poison / "torch.py").write_text("raise RuntimeError('a build imported torch')")
    run(*PIP, "wheel", *OFFLINE, clone, clone / "kernels", "-w", folder, PYTHONPATH=str(poison))
    built = {path.name.partition("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}
    assert set(built) == set(PAIR)
    return built


class Environment:
    """A virtual environment that sees this one's libraries, but none of our own packages."""

    def __init__(self, folder: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.python = folder / "bin" / "python"
        self.site = Path(
            run(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        )
        (folder / "libraries").mkdir()
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith(("pgdpo", "__editable__")):
                (folder / "libraries" / entry.name).symlink_to(entry)
        (self.site / "libraries.pth").write_text(str(folder / "libraries"))

    def pip(self, *arguments) -> None:
        run(*PIP, "--python", self.python, *arguments)

    def install(self, *what) -> None:
        self.pip("install", *OFFLINE, *what)

    def uninstall(self, *names: str) -> None:
        self.pip("uninstall", "-y", *names)

    def kernels(self) -> Path | None:
        """The folder that `import pgdpo_kernels` takes. Looked at, for an import of torch is slow."""
        code = (
            "from importlib.util import find_spec as f; s = f('pgdpo_kernels'); print(s and s.origin or '')"
        )
        found = run(self.python, "-c", code).strip()
        return Path(found).parent if found else None

    def use(self) -> str:
        """Import the kernels and compute something; the version that did."""
        code = (
            "import torch, pgdpo_kernels as k; x = torch.randn(2, 8); print(k.__version__);"
            "assert k.diffusion_dpo_loss(x, x + 1, x, beta=1.0).loss.isfinite()"
        )
        return run(self.python, "-c", code, PGDPO_KERNELS_BACKEND="eager").strip()


@pytest.fixture
def environment(tmp_path) -> Environment:
    return Environment(tmp_path / "venv")


def test_the_wheels_share_no_file_and_hold_the_same_kernels(wheels):
    """pip removes what a wheel's RECORD lists: a path in both would go with the first."""
    files = {name: set(zipfile.ZipFile(wheels[name]).namelist()) for name in PAIR}
    assert not files["pgdpo"] & files["pgdpo-kernels"]
    bundled = {
        name.partition("/")[2] for name in files["pgdpo"] if name.startswith("pgdpo_bundled/pgdpo_kernels/")
    }
    assert bundled == {name for name in files["pgdpo-kernels"] if name.startswith("pgdpo_kernels/")}
    assert {"pgdpo_kernels/py.typed", "pgdpo_kernels/version.py", "pgdpo_kernels/_ops.py"} <= bundled
    tracked = {
        path.relative_to(ROOT / "kernels") for path in (ROOT / "kernels" / "pgdpo_kernels").rglob("*.py")
    }
    assert {str(path) for path in tracked} == {name for name in bundled if name.endswith(".py")}


def test_one_order_and_both_alone(wheels, environment):
    environment.install(wheels["pgdpo-kernels"], wheels["pgdpo"])
    assert environment.kernels() == environment.site / "pgdpo_kernels"
    environment.uninstall("pgdpo-kernels")
    assert environment.kernels() == environment.site / "pgdpo_bundled" / "pgdpo_kernels"
    assert environment.use() == version()


@pytest.mark.slow
@pytest.mark.parametrize("order", itertools.permutations(PAIR))
@pytest.mark.parametrize("removed", PAIR)
def test_either_can_go(wheels, environment, order, removed):
    for name in order:
        environment.install(wheels[name])
    assert environment.kernels() == environment.site / "pgdpo_kernels"
    environment.uninstall(removed)
    assert (
        environment.kernels()
        == environment.site / ("" if removed == "pgdpo" else "pgdpo_bundled") / "pgdpo_kernels"
    )
    assert environment.use() == version()
    environment.uninstall(*set(PAIR) - {removed})
    assert environment.kernels() is None
    assert {path.name for path in environment.site.iterdir()} == {"libraries.pth"}  # pip left nothing behind


@pytest.mark.slow
@pytest.mark.parametrize("order", itertools.permutations(PAIR))
@pytest.mark.parametrize("removed", PAIR)
def test_either_can_go_of_a_clone(clone, wheels, environment, order, removed):
    """`pip install -e .` gives both packages by one command; where both are there, the distribution's files win."""
    for name in order:
        environment.install(*(["-e", clone] if name == "pgdpo" else [wheels[name]]))
    assert environment.kernels() == environment.site / "pgdpo_kernels"
    environment.uninstall(removed)
    assert (
        environment.kernels()
        == (environment.site if removed == "pgdpo" else clone / "kernels") / "pgdpo_kernels"
    )
    assert environment.use() == version()


@pytest.mark.slow
def test_sources_give_the_same_wheel(clone, wheels, tmp_path):
    """Both sdists hold all that a build reads."""
    build = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    for name, folder in zip(PAIR, (clone, clone / "kernels"), strict=True):
        subprocess.run([sys.executable, "-c", build, tmp_path], check=True, capture_output=True, cwd=folder)
        (sdist,) = tmp_path.glob(f"{name.replace('-', '_')}-*.tar.gz")
        run(*PIP, "wheel", *OFFLINE, sdist, "-w", tmp_path)
        (wheel,) = tmp_path.glob("*.whl")
        assert zipfile.ZipFile(wheel).namelist() == zipfile.ZipFile(wheels[name]).namelist()
        wheel.unlink()
        sdist.unlink()


def test_other_kernels_than_those_that_go_with_pgdpo_are_told(tmp_path):
    """As a pgdpo-kernels of another version is found first: its numbers may be others."""
    shutil.copytree(ROOT / "kernels" / "pgdpo_kernels", tmp_path / "pgdpo_kernels", ignore=LITTER)
    command = [sys.executable, "-m", "pgdpo", "objectives", "dpo"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT)))}
    same = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (same.returncode, same.stderr) == (0, "")
    (tmp_path / "pgdpo_kernels" / "version.py").write_text('__version__ = "0.0.9"\n')
    other = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert other.returncode == 0 and len(other.stderr.splitlines()) == 1
    for fact in ("0.0.9", str(tmp_path / "pgdpo_kernels"), version(), "pip uninstall pgdpo-kernels"):
        assert fact in other.stderr
    others_rank = subprocess.run(command, capture_output=True, text=True, env=environment | {"RANK": "1"})
    assert others_rank.stderr == ""


def version() -> str:
    return (ROOT / "kernels" / "pgdpo_kernels" / "version.py").read_text().split('"')[-2]
