"""The five golden runs: short trainings whose losses are written down, to show that a change moved nothing.

A server of ranks makes them (`tests/zygote.py`) that was started in the environment `PINNED`, because what decides the
last bits (vector instructions, threads) is read when torch is first imported.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.golden.inputs import CONFIG, MANIFEST, MODEL
from tests.ranks import PINNED, Ranks
from tests.worlds import metrics, run_pgdpo

PACKAGES = ("torch", "numpy", "diffusers", "peft", "deepspeed")  # whose code is in a loss
CPU_KEYS = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")  # of Linux on x86 and on Arm

DRAWS = "train.cached_draws=3"  # fewer than epochs, so that draws come again


@dataclass(frozen=True)
class Run:
    """`overrides`: keys of the configuration that this run changes."""

    ranks: int
    overrides: tuple[str, ...]


RUNS = {
    "dpo_lora": Run(1, ("objective.name=dpo",)),
    "pg_dpo_lora": Run(1, ()),
    "pg_dpo_full_frozen": Run(
        1, ("model.adapter=null", "train.reference=frozen", "train.learning_rate=3e-4")
    ),
    "pg_dpo_lora_cached": Run(1, ("train.reference=cached", DRAWS)),
    "pg_dpo_lora_two_ranks": Run(2, ("train.zero_stage=3",)),
}
# A defect on purpose, which the comparison must find: beta a ten-thousandth too large.
DEFECT = {"defect": Run(1, ("objective={name: dpo, beta: 100.01}",))}

COLUMNS = (
    "loss",
    "margin",
    "error/chosen",
    "error/rejected",
    "displacement",
    "gradient_share/rejected",
    "ars/alpha",
    "ipr/gate",
    "gradient_norm",
    "learning_rate",
)
Table = list[dict[str, float]]  # a row a step: `step`, and of `COLUMNS` those that the objective logs


@dataclass(frozen=True)
class Found:
    """What the runs gave here: tables by run (the defect's among them), and the stack that computed them."""

    tables: dict[str, Table]
    stack: dict


def run_all(folder: Path, ranks: Ranks) -> Found:
    """All runs, and the one with the defect, in `folder`; `ranks` are those of a server under `PINNED`."""
    # The two groups share nothing, and go on beside each other.
    jobs = [ranks.start(function=run_group, arguments=(str(folder), size), ranks=size) for size in (1, 2)]
    stacks = [stack for job in jobs for stack in job.values(timeout=280)]
    if any(stack != stacks[0] for stack in stacks):
        raise AssertionError(f"ranks of one server computed on different stacks: {stacks}")
    tables = {name: _table(_group(folder, run.ranks), name) for name, run in (RUNS | DEFECT).items()}
    return Found(tables, stacks[0])


def stack() -> dict:
    """Of this process: what two machines must share for equal bits.

    Python is not in it: it adds up none of these numbers.
    """
    import torch

    return {
        **{name: version(name) for name in PACKAGES},
        "torch_git": torch.version.git_version,
        "libc": " ".join(platform.libc_ver()),
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ.get(name) for name in PINNED},
    }


def _cpu() -> str:
    """The kind of processor: instruction set, maker, family and model, as far as the system says."""
    known = {}
    if Path("/proc/cpuinfo").is_file():
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
        lines = [line.split(":", 1) for line in first.splitlines() if ":" in line]
        known = {key.strip(): value.strip() for key, value in lines}
    told = [f"{key} {known[key]}" for key in CPU_KEYS if key in known]
    return ", ".join([platform.machine(), *told])


def _group(folder: Path, ranks: int) -> Path:
    """Where the runs on `ranks` are."""
    return folder / f"ranks-{ranks}"


def _table(group: Path, run: str) -> Table:
    rows = metrics(group, run)
    return [{"step": row["step"], **{name: row[name] for name in COLUMNS if name in row}} for row in rows]


def run_group(folder: str, ranks: int) -> dict:
    """One rank's part of the runs on `ranks`; returns `stack()`."""
    import torch.distributed as dist

    group = _group(Path(folder), ranks)
    group.mkdir(parents=True, exist_ok=True)
    # One process group for all commands, which meets through a file: a port could be taken.
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{group}/store", rank=rank, world_size=ranks)
    where = [f"output_dir={group}", f"data.train={MANIFEST}", f"model.path={MODEL}"]
    run_pgdpo("prepare", CONFIG, *where)
    runs = {name: run for name, run in (RUNS | DEFECT).items() if run.ranks == ranks}
    if any(DRAWS in run.overrides for run in runs.values()):
        run_pgdpo("reference", CONFIG, *where, DRAWS)
    for name, run in runs.items():
        run_pgdpo("train", CONFIG, *where, f"name={name}", *run.overrides)
    dist.destroy_process_group()
    return stack()
