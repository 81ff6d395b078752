"""Other people's trainers with the fused ops and without, on equal seeds: `python kernels/examples/run.py NAME ...`.

A folder here is one trainer:

- `patch.diff`: what puts the ops in, at most 15 lines, for `git apply --unidiff-zero`.
- `example.py`: `TRAINER`, `PACKAGES` (distributions that it needs, its own first), `DTYPE` (what the model computes
  in), `SCOPE` ("whole script", "training step" or "loss function"), and `command(source, work)`: makes what the trainer
  wants in the folder `work` and returns its arguments for Python. For a checkout also `CHECKOUT`: the variable that
  names it, the commit that the patch is of, and which of its paths are needed. `GAIN`, 1 by default: what the loss
  multiplies an error's rounding by, beta / 2 in preference losses. `findings()`, where there is one, measures what is
  wrong in the trainer's loss: a number by its name.
- `train.py`, where the trainer is a released package: a script as its documentation would write it.

A run is a process of its own on a fresh copy of the sources. It prints `step N: loss X`, for a checkout's script
by way of `record.py`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch

HERE = Path(__file__).resolve().parent
KERNELS = HERE.parent
NAMES = sorted(path.parent.name for path in HERE.glob("*/example.py"))
BACKENDS = ("eager", "triton")


class Skipped(Exception):
    """Why a trainer cannot be run here, and what to do."""


def load(name: str) -> ModuleType:
    """The module `NAME/example.py`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", HERE / name / "example.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def versions(example: ModuleType) -> dict[str, str]:
    """The version of each package that the example needs.

    Raises:
        Skipped: one is missing.
    """
    found = {}
    for package in example.PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise Skipped(f"needs {package}: pip install {package}") from None
    return found


def checkout(example: ModuleType) -> tuple[Path, str, tuple[str, ...]]:
    """The folder of the trainer's repository, the commit and the paths that the patch is for.

    Raises:
        Skipped: no variable names a repository that has the commit.
    """
    variable, commit, paths = example.CHECKOUT
    folder = os.environ.get(variable)
    if not folder:
        raise Skipped(f"needs a checkout: set {variable} to a clone that has commit {commit[:12]}")
    known = subprocess.run(
        ["git", "-C", folder, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True
    )
    if known.returncode:
        raise Skipped(f"{variable}={folder} does not have commit {commit}: fetch it")
    return Path(folder), commit, tuple(paths)


def sources(name: str, example: ModuleType, folder: Path) -> None:
    """The trainer's files, in `folder`: the checkout's own commit, whatever its work tree holds."""
    if hasattr(example, "CHECKOUT"):
        repository, commit, paths = checkout(example)
        archive = ["git", "-C", str(repository), "archive", commit, *paths]
        subprocess.run(["tar", "-x", "-C", folder], input=subprocess.check_output(archive), check=True)
    else:
        shutil.copy(HERE / name / "train.py", folder)


def patch(name: str, folder: Path) -> None:
    """`patch.diff` applied to the sources in `folder`; CalledProcessError where it does not fit."""
    outside = os.environ | {
        "GIT_CEILING_DIRECTORIES": str(folder.parent)
    }  # else git looks for a repository above
    command = ["git", "apply", "--unidiff-zero", str(HERE / name / "patch.diff")]
    subprocess.run(command, cwd=folder, env=outside, check=True)


def patch_lines(name: str) -> tuple[int, int]:
    """Lines that the patch adds and takes away."""
    lines = (HERE / name / "patch.diff").read_text().splitlines()
    return tuple(sum(x.startswith(s) and not x.startswith(s * 3) for x in lines) for s in "+-")


def run(name: str, backend: str | None = None) -> list[float]:
    """The losses of one run: untouched, or patched with the ops on a backend.

    Raises:
        Skipped: a package or the checkout is missing.
        RuntimeError: the trainer failed, with the end of what it said.
    """
    example = load(name)
    versions(example)
    with tempfile.TemporaryDirectory() as root:
        source, work = Path(root, "source"), Path(root, "work")
        source.mkdir(), work.mkdir()
        sources(name, example, source)
        if backend is not None:
            patch(name, source)
        arguments = [sys.executable, *map(str, example.command(source, work))]
        done = subprocess.run(
            arguments, cwd=source, env=environment(source, backend), capture_output=True, text=True
        )
    losses = [float(x) for x in re.findall(r"^step \d+: loss (\S+)$", done.stdout, re.MULTILINE)]
    if done.returncode or not losses:
        said = (done.stdout + done.stderr)[-3000:]
        raise RuntimeError(
            f"{name}, {backend or 'untouched'}: exit {done.returncode}, {len(losses)} losses\n{said}"
        )
    return losses


def environment(source: Path, backend: str | None) -> dict[str, str]:
    """Offline, one thread a process; Triton on a CPU is its interpreter."""
    interpreted = backend == "triton" and not torch.cuda.is_available()
    path = [str(source), str(KERNELS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PGDPO_KERNELS_BACKEND": backend or "eager",
        "TRITON_INTERPRET": str(int(interpreted)),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
    }


def compare(name: str, backends: list[str]) -> dict:
    """One row: the losses untouched and patched, and how far apart they are at most.

    Raises:
        Skipped, RuntimeError: as `run`.
    """
    example = load(name)
    added, removed = patch_lines(name)
    row = {"trainer": example.TRAINER, "scope": example.SCOPE, "versions": versions(example)}
    if hasattr(example, "CHECKOUT"):
        row["commit"] = checkout(example)[1]
    untouched = run(name)
    eps = torch.finfo(getattr(torch, example.DTYPE)).eps
    row |= {"lines_added": added, "lines_removed": removed, "dtype": example.DTYPE}
    row |= {"eps": eps, "gain": getattr(example, "GAIN", 1)}
    row |= {"steps": len(untouched), "losses": untouched, "patched": {}}
    for backend in backends:
        losses = run(name, backend)
        apart = [abs(a - b) for a, b in zip(untouched, losses, strict=True)]
        relative = max(d / max(abs(a), eps) for d, a in zip(apart, untouched, strict=True))
        row["patched"][backend] = {"losses": losses, "max_apart": max(apart), "max_relative": relative}
    if hasattr(example, "findings"):
        row["findings"] = example.findings()
    return row


def show(row: dict) -> str:
    """The row as lines of text."""
    version = row.get("commit", "")[:12] or next(iter(row["versions"].values()))
    lines = [
        f"{row['trainer']} {version}, {row['scope']}: +{row['lines_added']} -{row['lines_removed']} lines, "
        f"{row['steps']} steps in {row['dtype']} (rounding {row['eps'] * row['gain']:.1e}), "
        f"loss {row['losses'][0]:.6g} to {row['losses'][-1]:.6g}"
    ]
    for backend, found in row["patched"].items():
        lines.append(
            f"  {backend}: at most {found['max_apart']:.1e} apart, relative {found['max_relative']:.1e}"
        )
    lines += [f"  {name}: {value:.4g}" for name, value in row.get("findings", {}).items()]
    return "\n".join(lines)


def keep(rows: dict[str, dict], path: Path) -> None:
    """Put the rows, each with the machine, into a JSON file beside the others that it has."""
    sys.path.append(str(KERNELS.parent))
    from benchmarks.report import machine

    kept = json.loads(path.read_text()) if path.exists() else {}
    kept |= {name: row | {"machine": machine()} for name, row in rows.items()}
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


def main() -> int:
    """2 where every trainer that was named had to be skipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--out", type=Path, help="JSON file that takes the rows, beside those it has.")
    arguments = parser.parse_args()
    ran = 0
    for name in arguments.names:
        try:
            row = compare(name, arguments.backends)
        except Skipped as reason:
            print(f"{name} skipped: {reason}")
            continue
        ran += 1
        print(show(row), flush=True)
        if arguments.out:
            keep({name: row}, arguments.out)
    return 0 if ran else 2


if __name__ == "__main__":
    sys.exit(main())
