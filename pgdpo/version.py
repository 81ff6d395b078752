"""The version of this package, for what a run writes down, and which `pgdpo_kernels` is imported with it.

The kernels come with pgdpo, and are the distribution pgdpo-kernels too: both can be there, of different versions.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

__version__ = "0.1.0"

_AROUND = Path(__file__).resolve().parents[1]


def imported_kernels() -> Path | None:
    """The folder that `import pgdpo_kernels` takes, None where there is none. Nothing is imported by looking."""
    spec = importlib.util.find_spec("pgdpo_kernels")
    return Path(spec.origin).resolve().parent if spec and spec.origin else None


def own_kernels() -> Path | None:
    """The folder of the kernels that go with this pgdpo: in its clone, else in what its wheel installed."""
    folders = (_AROUND / name / "pgdpo_kernels" for name in ("kernels", "pgdpo_bundled"))
    return next((folder for folder in folders if folder.is_dir()), None)


def kernels_version(folder: Path) -> str:
    file = folder / "version.py"
    said = file.read_text(encoding="utf-8") if file.is_file() else ""
    return said.partition('__version__ = "')[2].partition('"')[0] or "unknown"


def foreign_kernels() -> str:
    """What is wrong where kernels of other sources than pgdpo's own are imported; empty where nothing is."""
    taken, own = imported_kernels(), own_kernels()
    if taken is None or own is None or taken == own or _sources(taken) == _sources(own):
        return ""
    return (
        f"pgdpo_kernels {kernels_version(taken)} is imported from {taken} and differs from the {kernels_version(own)} "
        f"that goes with pgdpo {__version__}, {own}. `pip uninstall pgdpo-kernels` leaves the one that goes with it; "
        "where that uninstalls nothing, PYTHONPATH names another first"
    )


def _sources(folder: Path) -> dict[Path, bytes]:
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.py")}
