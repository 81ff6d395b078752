"""Where a measurement was made, and the files it is written to."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "numpy",
    "pytest",
    "diffusers",
    "transformers",
    "peft",
    "deepspeed",
    "xformers",
    "av",
    "hypothesis",
)


def machine() -> dict:
    """Device, driver, versions, commit and date."""
    import triton

    out = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": output("git", "-C", str(RESULTS.parent), "rev-parse", "HEAD"),
        "changed_files": output("git", "-C", str(RESULTS.parent), "status", "--short", "--", "kernels"),
        "kernels_tree": tree_hash(RESULTS.parent.parent / "kernels"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "device": device_name(),
    }
    if torch.cuda.is_available():
        out["driver"] = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        out["cuda"] = torch.version.cuda or torch.version.hip
    else:
        out["triton_mode"] = "interpreter" if os.environ.get("TRITON_INTERPRET") == "1" else "none"
    return out


def installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def tree_hash(folder: Path) -> str:
    """git's own name of a folder's contents, also where there is no .git: `git rev-parse COMMIT:kernels` finds it."""
    entries = []
    for path in folder.iterdir():
        if path.name == "__pycache__" or path.name.endswith((".pyc", ".egg-info")):
            continue
        if path.is_symlink():
            kind, name = "120000", _object("blob", os.readlink(path).encode())
        elif path.is_dir():
            kind, name = "40000", tree_hash(path)
        else:
            kind = "100755" if os.access(path, os.X_OK) else "100644"
            name = _object("blob", path.read_bytes())
        order = path.name + ("/" if kind == "40000" else "")
        entries.append((order.encode(), f"{kind} {path.name}".encode() + b"\0" + bytes.fromhex(name)))
    return _object("tree", b"".join(entry for _, entry in sorted(entries)))


def _object(kind: str, content: bytes) -> str:
    return hashlib.sha1(
        f"{kind} {len(content)}".encode() + b"\0" + content, usedforsecurity=False
    ).hexdigest()


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}"


def write(result: dict, kind: str, path: Path | None = None) -> Path:
    """Write JSON, by default as results/[kind-]<device>-<date>.json."""
    if path is None:
        device = re.sub(r"[^a-z0-9]+", "-", device_name().lower()).strip("-")
        stem = "-".join(part for part in (kind, device, f"{datetime.date.today():%Y%m%d}") if part)
        path = RESULTS / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
