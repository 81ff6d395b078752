"""The files under configs/cluster: they parse, and the launchers that they call start pgdpo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.worlds import losses

CLUSTER = Path(__file__).parent.parent / "configs" / "cluster"
SCRIPTS = sorted(file.name for file in CLUSTER.iterdir() if file.name != "hostfile")
BIN = Path(sys.prefix) / "bin"


def start(script: str, *arguments: str, path: str = "", **environment: object) -> subprocess.Popen:
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    variables["PATH"] = f"{path}:{BIN}:{os.environ['PATH']}"
    command = ["bash", str(CLUSTER / script), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    try:
        output = process.communicate(timeout=240)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def run(script: str, *arguments: str, **environment: object) -> subprocess.CompletedProcess:
    return finish(start(script, *arguments, **environment))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_reads_it(script):
    subprocess.run(["bash", "-n", str(CLUSTER / script)], check=True)


def test_torchrun_on_two_nodes_is_one_run(config_file):
    """Two nodes on this machine: a launcher each, of one rank, that meet at HEAD."""
    where = {"HEAD": "127.0.0.1", "NODES": 2, "GPUS": 1, "PORT": free_port(), "NCCL_DEBUG": "INFO"}
    train = ["train", str(config_file), "name=nodes", "train.steps=1"]
    nodes = [start("torchrun.sh", *train, **where, OMP_NUM_THREADS=1, TRITON_INTERPRET=0) for _ in range(2)]
    ended = [finish(node) for node in nodes]
    # torchrun's own: the launcher that holds the store can be gone before the other asks it for the last time.
    assert 0 in [done.returncode for done in ended]
    for done in ended:
        assert done.returncode == 0 or "RendezvousConnectionError" in done.stderr, done.stderr
        assert "NCCL_DEBUG=INFO" in done.stderr and "NCCL_SOCKET_IFNAME=^lo,docker" in done.stderr
    folder = config_file.parent / "out" / "nodes"
    assert (folder / "checkpoints" / "step-00000001" / "manifest.json").is_file()  # all ranks came to the end
    assert json.loads((folder / "run.json").read_text())["ranks"] == 2
    assert (folder / "run-rank1.log").is_file()
    assert losses(config_file.parent / "out", "nodes") == [np.log(np.float32(2))]


def test_torchrun_says_what_it_lacks():
    done = run("torchrun.sh", "version")
    assert done.returncode and "HEAD: the node that all others can reach" in done.stderr


def stub(folder: Path, name: str, body: str) -> None:
    """A program that stands for one that this machine lacks."""
    file = folder / name
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o755)


def test_slurm_starts_torchrun_on_each_node(tmp_path):
    """Slurm's own programs are stubs: `srun` runs its command here, as a node would; torchrun is the real one."""
    stub(
        tmp_path,
        "scontrol",
        'test "$*" = "show hostnames node[0-1]" && echo 127.0.0.1 && seq -f node%.0f 100000',
    )
    stub(tmp_path, "srun", 'while [[ $1 == -* ]]; do shift; done; exec "$@"')
    job = {"SLURM_JOB_NODELIST": "node[0-1]", "SLURM_JOB_ID": os.getpid(), "SLURM_JOB_NUM_NODES": 1}
    submitted = {"SLURM_SUBMIT_DIR": CLUSTER.parent.parent, "SLURM_GPUS_ON_NODE": 1}
    done = run("slurm.sbatch", "version", path=str(tmp_path), **job, **submitted)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1 and "NCCL_DEBUG=WARN" in done.stderr


def test_slurm_options_are_ones_that_sbatch_has():
    known = {
        "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "mem", "time", "exclusive",
        "requeue", "open-mode", "output",
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
