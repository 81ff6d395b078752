"""`pgdpo doctor`: what this machine has, what is wrong with it, and the command that mends it.

Every check tries the thing itself where it can: a kernel is launched, a clip is written and read, a file is flushed.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from rich.markup import escape
from rich.table import Table

from pgdpo.messages.console import console, say
from pgdpo.version import foreign_kernels, imported_kernels, kernels_version

OK, WARNING, WRONG = "ok", "warning", "wrong"
NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "lustre",
    "beegfs",
    "gpfs",
    "ceph",
    "fuse.sshfs",
    "9p",
    "fuse.s3fs",
}
PACKAGES = {
    "torch": ">=2.10,<2.14",
    "triton": ">=3.5,<3.10",
    "diffusers": ">=0.38",
    "transformers": "",
    "deepspeed": ">=0.19",
    "peft": ">=0.17",
    "av": ">=17",
    "safetensors": ">=0.5",
}
TORCH_WHEELS = "https://download.pytorch.org/whl"
XFORMERS = "xformers>=0.0.35"  # 0.0.34 goes with torch 2.10.0 alone, 0.0.33 with 2.9


@dataclass(frozen=True)
class Finding:
    what: str
    state: str  # ok | warning | wrong
    found: str
    mend: str = ""  # the command or setting that mends it


def examine(folder: Path) -> list[Finding]:
    """All findings; `folder` is where runs will be written."""
    found: list[Finding] = []
    for check in (_python, _packages, _gpus, _kernels, _attention, _communication, _video, _memory):
        found += _guarded(check)
    found += _guarded(functools.partial(_disk, folder))
    return found


def show(findings: list[Finding]) -> bool:
    """Print the table, and under it what to do, in lines that can be copied. Returns whether nothing is wrong."""
    table = Table(title="pgdpo doctor")
    for name in ("", "check", "found"):
        table.add_column(name, overflow="fold")
    signs = {OK: "[green]ok[/]", WARNING: "[yellow]warning[/]", WRONG: "[red]wrong[/]"}
    for finding in findings:
        table.add_row(signs[finding.state], finding.what, escape(finding.found))
    console.print(table, soft_wrap=False)
    for finding in findings:
        if finding.mend:
            say(f": {finding.mend}", first=finding.what)
    wrong = [finding.what for finding in findings if finding.state == WRONG]
    console.print(f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong")
    return not wrong


def as_json(findings: list[Finding]) -> list[dict]:
    return [asdict(finding) for finding in findings]


def _guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """A check that breaks is itself a finding."""
    name = getattr(check, "func", check).__name__.strip("_")
    found = []
    try:
        found.extend(check())
    except Exception as error:
        found.append(Finding(name, WRONG, f"{type(error).__name__}: {error}"[:300], "see the message"))
    return found


def _python() -> Iterator[Finding]:
    fits = (3, 10) <= sys.version_info[:2] <= (3, 13)
    yield Finding(
        "Python",
        OK if fits else WARNING,
        platform.python_version(),
        "" if fits else "tested are 3.10 to 3.13",
    )


def _packages() -> Iterator[Finding]:
    for name, wanted in PACKAGES.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, WRONG, "not installed", f"pip install '{name}{wanted}'")
            continue
        fits = Version(version) in SpecifierSet(wanted, prereleases=True)
        yield Finding(name, OK if fits else WRONG, version, "" if fits else f"pip install '{name}{wanted}'")


def _gpus() -> Iterator[Finding]:
    smi = shutil.which("nvidia-smi")
    if not torch.cuda.is_available():
        if smi is None:
            yield Finding("GPU", WARNING, "none: the toy and the tests run, large models don't")
        elif torch.version.cuda is None:
            yield Finding(
                "GPU", WRONG, "a driver is there, this torch is built for the CPU", "pip install torch"
            )
        else:
            yield Finding(
                "GPU",
                WRONG,
                f"torch (CUDA {torch.version.cuda}) cannot use the driver",
                "nvidia-smi shows the driver's CUDA version: update the driver, or install a torch built for it",
            )
        return
    query = [smi, "--query-gpu=driver_version", "--format=csv,noheader"] if smi else None
    driver = (
        subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0] if query else "unknown"
    )
    yield Finding("driver", OK, f"{driver}, torch built for CUDA {torch.version.cuda or torch.version.hip}")
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        free, total = torch.cuda.mem_get_info(number)
        half = torch.cuda.get_device_capability(number) >= (8, 0)
        taken = total - free > total // 10
        yield Finding(
            f"GPU {number}",
            WRONG if not half else WARNING if taken else OK,
            f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free",
            "bf16 needs compute capability 8.0"
            if not half
            else "nvidia-smi shows who holds it"
            if taken
            else "",
        )


def _kernels() -> Iterator[Finding]:
    from pgdpo_kernels import pair_errors
    from pgdpo_kernels.backend import takes_triton

    folder, foreign = imported_kernels(), foreign_kernels()
    said = f"{kernels_version(folder)} from {folder}"
    yield Finding("pgdpo_kernels", WARNING if foreign else OK, said, foreign)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pred, target, reference = torch.randn(3, 4, 4, 3, 8, 8, device=device)
    fused = pair_errors(pred, target, reference).policy_chosen[:, 0].double()
    wanted = (pred.double() - target.double()).square().mean(dim=(1, 2, 3, 4))[:2]
    error = float(((fused - wanted) / wanted).abs().max())
    path = "Triton" if takes_triton("pair_errors", pred) else "eager (no GPU)"
    yield Finding("pair_errors", OK if error < 1e-5 else WRONG, f"{path}, relative error {error:.0e}")


def _attention() -> Iterator[Finding]:
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    cuda = torch.cuda.is_available()
    query = torch.randn(
        1, 64, 2, 64, device="cuda" if cuda else "cpu", dtype=torch.bfloat16 if cuda else torch.float32
    )
    works = []
    for name in ("native", "xformers", "flash", "_flash_3", "sage"):
        try:
            dispatch_attention_fn(query, query, query, backend=AttentionBackendName(name))
            works.append(name)
        except Exception:  # each backend fails in its own way where it is not installed
            continue
    yield Finding("attention backends", OK if works else WRONG, ", ".join(works) + " (model.attention)")
    yield _xformers("xformers" in works)


def _xformers(works: bool) -> Finding:
    """Whether xformers loads what is compiled for a torch and a CUDA; `works`: whether attention ran with it."""
    try:
        version = importlib.metadata.version("xformers")
    except importlib.metadata.PackageNotFoundError:
        return Finding("xformers", WARNING, "not installed", _install_xformers())
    if works:
        return Finding("xformers", OK, f"{version}: attention runs with it")
    from xformers import _cpp_lib

    error = _cpp_lib._cpp_library_load_exception
    if error is None and not torch.cuda.is_available():
        return Finding("xformers", OK, f"{version}: its extensions load; there is no GPU to run them")
    if error is None:
        return Finding("xformers", WARNING, f"{version} has no operator for this GPU", _install_xformers())
    wants = [need for need in importlib.metadata.requires("xformers") or () if need.startswith("torch")]
    built = getattr(error, "build_info", None)
    of = f" and is built for torch {built.torch_version}" if built else ""
    while error.__context__ is not None:
        error = error.__context__
    return Finding(
        "xformers",
        WARNING,
        f"{version} goes with {', '.join(wants)}{of}; here is torch {torch.__version__}, and its extensions can't be "
        f"loaded ({str(error).splitlines()[0]}). model.attention=xformers won't work; native, torch's own attention "
        "and the default, does",
        _install_xformers(),
    )


def _install_xformers() -> str:
    """The command that brings the xformers of the installed torch: it must be built for the same CUDA or ROCm."""
    if torch.version.cuda:
        built = "cu" + torch.version.cuda.replace(".", "")
    elif torch.version.hip:
        built = "rocm" + ".".join(torch.version.hip.split(".")[:2])
    else:
        return (
            f"nothing, as long as torch is built for the CPU ({torch.__version__}); with a torch for CUDA 12.8, for "
            f"instance: pip install '{XFORMERS}' --index-url {TORCH_WHEELS}/cu128"
        )
    return f"pip install --force-reinstall --no-deps '{XFORMERS}' --index-url {TORCH_WHEELS}/{built}"


def _communication() -> Iterator[Finding]:
    if torch.cuda.is_available() and torch.distributed.is_nccl_available():
        version = ".".join(map(str, torch.cuda.nccl.version()))
        settings = " ".join(f"{key}={value}" for key, value in os.environ.items() if key.startswith("NCCL_"))
        yield Finding("NCCL", OK, f"{version} {settings or '(no NCCL_ settings)'}")
        pairs = [
            (a, b)
            for a in range(torch.cuda.device_count())
            for b in range(a)
            if not torch.cuda.can_device_access_peer(a, b)
        ]
        if pairs:
            yield Finding(
                "GPU to GPU", WARNING, f"no direct access between {len(pairs)} pairs of GPUs: slower all-reduce",
                "nvidia-smi topo -m; in containers: --ipc=host, ACS off",
            )  # fmt: skip
    else:
        gloo = torch.distributed.is_gloo_available()
        yield Finding("communication", OK if gloo else WRONG, "gloo" if gloo else "neither NCCL nor gloo")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        small = free < 2**30
        yield Finding(
            "/dev/shm", WARNING if small else OK, f"{free / 2**30:.1f} GiB free",
            "loader processes and NCCL share memory there: docker run --shm-size=16g" if small else "",
        )  # fmt: skip


def _video() -> Iterator[Finding]:
    from pgdpo.video import read_video, write_video

    frames = np.full((4, 32, 32, 3), 128, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "clip.mp4", frames, 8)
        back = read_video(Path(folder) / "clip.mp4", num_frames=4, size=(32, 32))
    near = int(np.abs(back.astype(int) - frames).max()) <= 8
    yield Finding("mp4", OK if near else WRONG, "written and read back through PyAV")


def _memory() -> Iterator[Finding]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding("memory", OK if total > 7 else WARNING, f"{total:.0f} GiB, {os.cpu_count()} cores")


def _disk(folder: Path) -> Iterator[Finding]:
    existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(existing).free
    yield Finding(
        "disk", OK if free > 50 * 2**30 else WARNING, f"{free / 2**30:.0f} GiB free at {existing}",
        "" if free > 50 * 2**30 else "`pgdpo plan` says what a run needs; output_dir=... puts it elsewhere",
    )  # fmt: skip
    kind = _file_system(existing)
    network = kind in NETWORK_FILE_SYSTEMS
    yield Finding(
        "file system", WARNING if network else OK, kind + (": a network file system" if network else ""),
        "keep prepared shards on a local disk; checkpoints are published by a rename, which must be atomic there"
        if network
        else "",
    )  # fmt: skip
    with tempfile.NamedTemporaryFile(dir=existing, prefix=".pgdpo-doctor-") as file:
        started = time.perf_counter()
        file.write(bytes(64 << 20))
        file.flush()
        os.fsync(file.fileno())
        speed = 64 / (time.perf_counter() - started)
    yield Finding(
        "disk write", OK if speed > 100 else WARNING, f"{speed:.0f} MiB/s, flushed",
        "" if speed > 100 else "checkpoints will be slow: raise train.checkpoint_every",
    )  # fmt: skip


def _file_system(path: Path) -> str:
    """Type of the file system that holds `path`, from /proc/mounts; `unknown` elsewhere."""
    mounts = Path("/proc/mounts")
    if not mounts.is_file():
        return "unknown"
    rows = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    holding = [(point, kind) for point, kind in rows if path.is_relative_to(point)]
    return max(holding, key=lambda row: len(row[0]))[1] if holding else "unknown"
