"""The files under configs/cluster: they parse, and the launchers that they call start pgdpo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CLUSTER = Path(__file__).parents[2] / "configs" / "cluster"
SCRIPTS = sorted(file.name for file in CLUSTER.iterdir() if file.name != "hostfile")
BIN = Path(sys.prefix) / "bin"


def run(script: str, *arguments: str, path: str = "", **environment: object) -> subprocess.CompletedProcess:
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    variables["PATH"] = f"{path}:{BIN}:{os.environ['PATH']}"
    command = ["bash", str(CLUSTER / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_reads_it(script):
    subprocess.run(["bash", "-n", str(CLUSTER / script)], check=True)


def test_torchrun_says_what_it_lacks():
    done = run("torchrun.sh", "version")
    assert done.returncode and "HEAD: node 0, by a name" in done.stderr
    done = run("torchrun.sh", "version", HEAD="node0", NODES=2)
    assert done.returncode and "NODE: the number of this node" in done.stderr


def stub(folder: Path, name: str, body: str) -> None:
    """A program that stands for one that this machine lacks."""
    file = folder / name
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o755)


JOB = {
    "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_ID": 70001, "SLURM_SUBMIT_DIR": CLUSTER.parent.parent,
    "SLURM_NTASKS": 4, "SLURM_NTASKS_PER_NODE": 2, "SLURM_CPUS_PER_TASK": 8,
}  # fmt: skip


def slurm(folder: Path, srun: str, *arguments: str) -> subprocess.CompletedProcess:
    """slurm.sbatch among stubs of Slurm's own programs; what `scontrol` was asked for comes last in `stderr`."""
    stub(folder, "srun", srun)
    stub(
        folder,
        "scontrol",
        'if [[ $1 == show ]]; then echo 127.0.0.1; seq -f node%.0f 100000; fi; echo "$@" >> "$0.asked"',
    )
    done = run("slurm.sbatch", *arguments, path=str(folder), **JOB)
    done.stderr += (folder / "scontrol.asked").read_text()
    return done


def test_slurm_starts_a_rank_on_each_gpu(tmp_path):
    stub(
        tmp_path,
        "python",
        f'echo $RANK $LOCAL_RANK; env | sort | grep -E "^(WORLD|LOCAL_W|MASTER)"; {BIN}/python "$@"',
    )
    options = 'while [[ $1 == -* ]]; do echo "srun $1" >&2; shift; done\n'
    done = slurm(tmp_path, options + 'SLURM_PROCID=3 SLURM_LOCALID=1 "$@"', "version")
    assert done.returncode == 0, done.stderr
    ranks = ["LOCAL_WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1", "MASTER_PORT=30001", "WORLD_SIZE=4"]
    assert done.stdout.splitlines()[:-1] == ["3 1", *ranks]
    assert "NCCL_DEBUG=WARN" in done.stderr and "srun --cpus-per-task=8" in done.stderr
    assert done.stderr.endswith("show hostnames node[0-1]\n")


@pytest.mark.parametrize(
    ("ends", "code", "again"),
    [
        ("exit 143", 143, True),  # --signal, preemption
        ("kill -TERM $PPID; sleep 0.1; exit 143", 143, False),  # scancel tells the script too
        ("exit 130", 130, False),
        ("exit 1", 1, False),
        ("exit 137", 137, False),
        ("exit 0", 0, False),
    ],
)
def test_slurm_queues_again_what_a_scheduler_stopped(tmp_path, ends, code, again):
    done = slurm(tmp_path, ends, "train", "config.yaml", "--resume")
    assert done.returncode == code
    assert done.stderr.endswith("requeue 70001\n") == again


def test_slurm_options_are_ones_that_sbatch_has():
    known = {
        "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time", "exclusive",
        "requeue", "open-mode", "output", "signal",
    }  # fmt: skip
    lines = (CLUSTER / "slurm.sbatch").read_text().splitlines()
    options = [line.split()[1] for line in lines if line.startswith("#SBATCH ")]
    assert {option.removeprefix("--").partition("=")[0] for option in options} == known
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(n < first_command for n, line in enumerate(lines) if line.startswith("#SBATCH "))


def test_deepspeed_takes_the_hostfile_and_the_command(tmp_path):
    from deepspeed.launcher.runner import fetch_hostfile, parse_args

    stub(tmp_path, "deepspeed", 'printf "%s\\n" "$@"')
    done = run("deepspeed.sh", "train", "configs/wan21_14b.yaml", "train.zero_stage=3", path=str(tmp_path))
    assert done.returncode == 0, done.stderr
    arguments = parse_args(done.stdout.split())
    assert arguments.module and arguments.user_script == "pgdpo" and arguments.master_port == 29500
    assert arguments.user_args == ["train", "configs/wan21_14b.yaml", "train.zero_stage=3"]
    assert fetch_hostfile(arguments.hostfile) == {"node0": 8, "node1": 8}
