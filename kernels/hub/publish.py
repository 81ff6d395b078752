"""Lay pgdpo_kernels out as a kernel of Hugging Face's hub, see that `kernels` loads it, and upload it.

    python kernels/hub/publish.py OWNER/pgdpo-kernels --out FOLDER

The folder becomes a project of `kernel-builder` (build.toml, flake.nix, torch-ext/) together with what `kernel-builder
build` would make of it (build/): of a noarch kernel a copy of the sources for each backend, a namespace for its
operators, and metadata. That tool needs nix, this script Python 3.11. What the hub asks for:
https://huggingface.co/docs/kernels/kernel-requirements
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import tomllib

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "pgdpo_kernels"
OPS = '''"""The namespace of this build's operators."""

import torch

_OPS_NAME = "{name}"

ops = getattr(torch.ops, _OPS_NAME)


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{{_OPS_NAME}}::{{op_name}}"
'''


def lay_out(out: Path, repo_id: str) -> dict[str, str]:
    """Write the project and its builds into `out`, an empty or new folder.

    The namespace holds a hash of the sources: another version has another one, and equal sources the same.

    Returns:
        For each variant of the build, such as `torch-cuda`, the namespace of its operators.

    Raises:
        ValueError: `out` holds something, or `repo_id` is no OWNER/NAME.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"repo_id must be OWNER/NAME, such as me/pgdpo-kernels, got {repo_id!r}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out must be a new or empty folder, got {out}: empty it, or name another")
    about = general()
    sources = {
        path.relative_to(PACKAGE).as_posix(): path.read_bytes() for path in sorted(PACKAGE.rglob("*.py"))
    }
    del sources["_ops.py"]  # every build has its own
    module = about["name"].replace("-", "_")
    write(out / "torch-ext" / module, sources.items())
    shutil.copy(HERE / "flake.nix", out)
    config = (HERE / "build.toml").read_text(encoding="utf-8")
    (out / "build.toml").write_text(f'{config}\n[general.hub]\nrepo-id = "{repo_id}"\n', encoding="utf-8")
    variants = {}
    for backend in about["backends"]:
        name = f"_{module}_{backend}_{digest(sources)}"
        files = sources | {"_ops.py": OPS.format(name=name).encode()}
        metadata = json.dumps(described(about, backend, name, files), indent=2).encode()
        write(out / "build" / f"torch-{backend}", (files | {"metadata.json": metadata}).items())
        variants[f"torch-{backend}"] = name
    card = (HERE / "card.template").read_text(encoding="utf-8").replace("{{ repo_id }}", repo_id)
    card = card.replace("{{ version }}", str(about["version"]))
    (out / "CARD.md").write_text(card, encoding="utf-8")
    return variants


def general() -> dict:
    """The table of that name of build.toml."""
    return tomllib.loads((HERE / "build.toml").read_text(encoding="utf-8"))["general"]


def write(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    for name, content in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def digest(files: dict[str, bytes]) -> str:
    """Ten digits of a hash of names and contents."""
    summed = hashlib.sha256()
    for name, content in sorted(files.items()):
        summed.update(f"{name}\0{len(content)}\0".encode() + content)
    return summed.hexdigest()[:10]


def described(about: dict, backend: str, name: str, files: dict[str, bytes]) -> dict:
    """The metadata of one variant: the loader names the module, and looks for its operators, by `id`."""
    hashes = {
        path: base64.b64encode(hashlib.sha256(content).digest()).decode() for path, content in files.items()
    }
    return {
        "name": about["name"],
        "id": name,
        "version": about["version"],
        "license": about["license"],
        "python-depends": [],
        "kernel-depends": [],
        "backend": {"type": backend},
        "digest": {"algorithm": "sha256", "files": dict(sorted(hashes.items()))},
    }


def check(out: Path, variants: dict[str, str]) -> None:
    """Load the build for this machine as a user's `get_kernel` would, and use it.

    Raises:
        ImportError: without the package `kernels`.
        RuntimeError: what was loaded is not what was laid out.
    """
    import torch

    from kernels import get_local_kernel

    kernel = get_local_kernel(out)
    pred, target = torch.randn(2, 2, 16, 5, 8, 8)
    loss = kernel.diffusion_dpo_loss(pred, target, pred, beta=500.0, objective="dpo").loss.item()
    if kernel.__name__ not in variants.values() or not hasattr(
        getattr(torch.ops, kernel.__name__), "preference"
    ):
        raise RuntimeError(f"the operators are not under the namespace of the build, {kernel.__name__}")
    if not math.isclose(loss, math.log(2), rel_tol=1e-6):
        raise RuntimeError(f"equal predictions have a loss of {loss}, not ln 2")


def upload(api, out: Path, repo_id: str, branch: str) -> None:
    """The card to main and the builds to the version's branch, where `kernel-builder upload` puts them.

    One commit brings all builds and takes away what an earlier one had beside them: no reader meets half of a version.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    where = {"repo_id": repo_id, "repo_type": "kernel"}
    api.create_repo(**where, exist_ok=True)
    api.create_branch(**where, branch=branch, exist_ok=True)
    api.upload_file(**where, path_or_fileobj=out / "CARD.md", path_in_repo="README.md")
    files = (path for path in sorted((out / "build").rglob("*")) if path.is_file() and path.suffix != ".pyc")
    built = {path.relative_to(out).as_posix(): path for path in files}
    there = api.list_repo_files(**where, revision=branch)
    operations = [CommitOperationAdd(name, path) for name, path in built.items()]
    operations += [
        CommitOperationDelete(name) for name in there if name.startswith("build/") and name not in built
    ]
    api.create_commit(
        **where, revision=branch, operations=operations, commit_message=f"pgdpo_kernels {version()}"
    )


def version() -> str:
    return (PACKAGE / "version.py").read_text(encoding="utf-8").split('"')[-2]


def main() -> str | None:
    """What went wrong, or None."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("repo_id", help="OWNER/NAME on the hub")
    parser.add_argument(
        "--out", type=Path, required=True, help="a new or empty folder for the project and its builds"
    )
    arguments = parser.parse_args()
    try:
        variants = lay_out(arguments.out, arguments.repo_id)
        check(arguments.out, variants)
    except ValueError as error:
        return str(error)
    except ImportError as error:
        return f"{arguments.out} is laid out, and not checked: {error}. `pip install kernels` brings what loads it"
    branch = f"v{general()['version']}"
    what = f"{', '.join(variants)} of {arguments.out} to the branch {branch} of {arguments.repo_id}"
    if not (token := os.environ.get("HF_TOKEN")):
        return f"`kernels` loads it; without a token nothing is uploaded. HF_TOKEN=... uploads {what}"
    from huggingface_hub import HfApi

    upload(HfApi(token=token), arguments.out, arguments.repo_id, branch)
    print(f"uploaded {what}")
    return None


if __name__ == "__main__":
    if message := main():
        print(message, file=sys.stderr)
        sys.exit(2)
