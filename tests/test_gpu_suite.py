"""The GPU suite can't waste a GPU: its whole flow on a stub driver, killed at random seconds, and its worst cases."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import assembly, supervisor
from benchmarks.gpu.__main__ import STAGES, run
from benchmarks.gpu.driver import VARIABLE
from benchmarks.gpu.kernel_tests import JOB
from benchmarks.gpu.rows import NAME, Rows, read
from benchmarks.gpu.smoke import OPS
from benchmarks.gpu.stages import Job

ROOT = Path(__file__).resolve().parents[1]


def suite(out: Path, *arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, **options)


def assemble(out: Path) -> dict:
    done = suite(out, "--assemble")
    said, _ = done.communicate(timeout=60)
    assert len(said.strip().splitlines()) <= 40
    return json.loads((out / "result.json").read_text())


def settled(out: Path) -> list[dict]:
    """The rows, once the worker of a killed run has followed it by itself."""
    rows = read(out)
    while (time.sleep(1.5), later := read(out))[1] != rows:
        rows = later
    return rows


@pytest.mark.slow  # two minutes; CI asks for it by name
@pytest.mark.timeout(900)  # a whole run, four starts
def test_killed_three_times_it_keeps_what_it_had_and_goes_on_to_the_end(tmp_path):
    out, chance, kept = tmp_path / "run", random.Random(), set()
    for kill in range(3):
        before = len(read(out)) if kill else 0
        process = suite(out, "--dry-run", "--minutes", "10", start_new_session=True)
        while not (out / NAME).exists() or len(read(out)) == before:  # until it is at work
            time.sleep(0.1)
        seconds = chance.uniform(0, 15)
        time.sleep(seconds)
        process.kill()
        process.wait()
        rows = settled(out)
        found = {(row["stage"], row["case"]) for row in rows if row["status"] == "ok"}
        assembly.write(out)  # what --assemble calls, without a process for each
        result = json.loads((out / "result.json").read_text())
        assert kept <= found and sum(result["passed"].values()) == len(found - {("tests", JOB)})
        print(f"kill {kill + 1} after {seconds:.1f} s: {len(rows)} rows, passed {result['passed']}")
        kept = found
    said, _ = suite(out, "--dry-run", "--minutes", "10").communicate(timeout=600)
    assert "THE TIMES SAY NOTHING" in said.upper()
    rows, result = read(out), assemble(out)
    whole_run(result, rows)
    again = ("machine", "end", "tests")  # each run says where it is; tests that were cut off begin anew
    cases = [
        (row["stage"], row["case"]) for row in rows if row["status"] == "ok" and row["stage"] not in again
    ]
    assert len(cases) == len(set(cases)), "what was done was done twice"


def whole_run(result: dict, rows: list[dict]) -> None:
    """Every stage has its rows, whole training steps show the losses that they must."""
    assert result["stub"] is True and result["failed"] == [] and result["left_out"] == []
    assert set(result["passed"]) == {"machine", *STAGES, "end"}
    assert {row["op"] for row in result["rows"]} == set(OPS)
    for row in result["rows"]:
        assert set(row["us"]) == {"fused", "eager", "compile"}
        assert row["times_eager"] > 0 and row["times_compile"] > 0 and row["share_of_copy"] > 0
    (block,) = result["blocks"]
    assert set(block["us"]) == {"fused", "eager", "compile"} and block["moved_bytes"] is None
    steps = result["steps"]
    assert set(steps) == set("abcdef") and set(result["compared"]) == set("bcdf")
    assert steps["a"]["losses"][0] == pytest.approx(math.log(2), rel=1e-6)  # plain DPO
    # PG-DPO, beside a reference and with its errors cached
    assert steps["b"]["losses"][0] == steps["c"]["losses"][0]
    for found in steps.values():
        assert len(set(found["losses"])) > 1 and found["peak_memory"] > 0 and found["seconds"] > 0
    assert len([row for row in rows if row["status"] == "part" and row["case"] == "step b"]) >= 4


def good(emit):
    emit("ok", found=1)


def raises(emit):
    raise RuntimeError("no such kernel")


def dies(emit):
    os.kill(os.getpid(), signal.SIGKILL)


def is_slow(emit):
    time.sleep(60)


def hangs(emit):
    """As a kernel that never ends: no signal reaches Python."""
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    time.sleep(60)


def describe(emit):
    emit("ok", machine={"device": "none", "stub": True})


@pytest.fixture
def in_turn(monkeypatch, tmp_path):
    """Run these jobs under the supervisor; the rows that they leave."""
    monkeypatch.setenv(VARIABLE, "stub")
    monkeypatch.setattr(supervisor, "GRACE", 0.5)
    monkeypatch.setattr(supervisor, "LEAST", 0.3)

    def run_jobs(*jobs: Job, minutes: float = 5.0) -> list[dict]:
        listed = [Job("machine", "machine", describe, 9.0), *jobs]
        monkeypatch.setattr(supervisor, "jobs", lambda *_: listed)
        supervisor.Supervisor(tmp_path, time.monotonic() + 60 * minutes, "smoke", None).run()
        return read(tmp_path)[1:]

    return run_jobs


def test_whatever_happens_to_a_job_is_a_row_and_the_next_one_runs(in_turn, tmp_path):
    bad = [Job("smoke", name.__name__, name, 1.0) for name in (raises, dies, is_slow, hangs)]
    after = [Job("smoke", f"after {job.name}", good, 9.0) for job in bad]
    missing = Job("steps", "step a", good, 9.0, needs=("torch", "no_such_package"))
    rows = in_turn(*(job for both in zip(bad, after, strict=True) for job in both), missing)
    assert [row["status"] for row in rows[1::2]] == ["ok"] * 4
    told = {row["case"]: (row["status"], row["why"]) for row in rows if "why" in row}
    assert told["raises"] == ("failed", "RuntimeError: no such kernel")
    assert told["dies"] == ("failed", "its process died (SIGKILL)")
    assert told["is_slow"][0] == "out of time" and "1 s" in told["is_slow"][1]
    assert told["hangs"][0] == "failed" and "killed" in told["hangs"][1]
    assert told["step a"] == ("left out", "not installed: no_such_package")
    assert not left_over(), "what a hanging job had started still runs"
    result = assembly.assemble(read(tmp_path))
    assert len(result["failed"]) == 4 and result["left_out"][0]["case"] == "step a"
    again = in_turn(*bad[:1], Job("smoke", "after raises", raises, 9.0))[len(rows) + 1 :]
    assert [row["case"] for row in again] == ["raises"], "only what is not ok is run again"


def left_over() -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if "time.sleep(600)" in line and "ps -eo" not in line]


def test_the_end_of_the_time_leaves_jobs_out_by_name(in_turn):
    rows = in_turn(Job("smoke", "late", good, 9.0), Job("end", "roof", good, 9.0), minutes=0.0)
    assert [(row["case"], row["status"]) for row in rows] == [("late", "left out"), ("roof", "ok")]
    assert rows[0]["why"] == "no time left"


def naps(emit):
    time.sleep(0.8)
    emit("ok")


def test_a_stage_leaves_time_to_those_that_follow_and_to_no_others(in_turn, monkeypatch):
    monkeypatch.setattr(supervisor, "RESERVE", 0.0)
    long = [Job("compile", f"nap {n}", naps, 9.0, share=0.5) for n in range(8)]
    rows = in_turn(*long, Job("block", "block", good, 9.0), minutes=6 / 60)
    assert rows[-1]["case"] == "block" and rows[-1]["status"] == "ok"
    left_out = [row["case"] for row in rows if row["status"] == "left out"]
    assert left_out and "nap 0" not in left_out


def test_a_torn_line_is_passed_over_and_ended(tmp_path):
    rows = Rows(tmp_path)
    rows.add("smoke", "one", "ok")
    with (tmp_path / NAME).open("a") as file:
        file.write('{"stage": "smoke", "case": "tor')
    Rows(tmp_path).add("smoke", "two", "ok")
    assert [row["case"] for row in read(tmp_path)] == ["one", "two"]


def test_a_cut_off_variant_keeps_its_steps_and_shares_are_of_the_faster_copy(tmp_path):
    rows, us = Rows(tmp_path), {"fused": 10.0, "eager": 30.0}
    facts = {"op": "gate_residual", "direction": "forward", "shape": [8], "dtype": "bfloat16"}
    facts |= {"tensor_bytes": 16, "moved_bytes": 10**7, "launches": 1}
    for stage, speed in (("machine", 1000.0), ("end", 1250.0)):
        rows.add(stage, "roof", "ok", copy_gb_per_s=speed, empty_launch_us=5.0)
    rows.add("wide", "gate", "ok", **facts, us=us)
    rows.add("compile", "gate", "ok", **facts, us={"fused": 8.0, "compile": 12.0})
    step = {"loss": 0.7, "pairs_per_second": 1.0, "tokens_per_second": 2.0, "mfu": 0.3, "peak_memory": 5}
    for number in (1, 2):
        rows.add("steps", "step a", "part", step=number, seconds=float(number), **step)
    result = assembly.assemble(read(tmp_path))
    (row,) = result["rows"]
    assert row["times_eager"] == 3.0 and row["times_compile"] == 1.5  # each against the fused op beside it
    assert row["share_of_copy"] == pytest.approx(10**7 / 10.0 / 1e3 / 1250)
    assert result["steps"]["a"]["cut_off_after"] == 2 and result["steps"]["a"]["seconds"] == 2.0
    assert len(assembly.summary(result)) <= 39


@pytest.mark.parametrize("roof", [None, {"copy_gb_per_s": 1000.0, "empty_launch_us": None}])
def test_without_a_whole_roof_there_is_a_summary_and_no_picture(tmp_path, capsys, roof):
    rows = Rows(tmp_path)
    if roof:
        rows.add("machine", "roof", "ok", **roof)
    facts = {"op": "gate_residual", "direction": "forward", "shape": [8], "dtype": "bfloat16"}
    facts |= {"tensor_bytes": 16, "moved_bytes": 10**7, "launches": 1}
    rows.add("wide", "gate", "ok", **facts, us={"fused": 10.0, "eager": 30.0})
    assert assembly.write(tmp_path) == 0
    assert "no roofline.png (no case or no copy was measured)" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert row.get("share_of_copy") == (pytest.approx(1.0) if roof else None) and row["times_eager"] == 3.0


def test_rows_of_another_machine_are_not_added_to(tmp_path, capsys):
    machine = {"device": "NVIDIA H100", "torch": "2.11", "triton": "3.6", "kernels_tree": "0", "stub": False}
    Rows(tmp_path).add("machine", "machine", "ok", machine=machine)
    process = suite(tmp_path, "--dry-run", stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "holds rows of device NVIDIA H100, here it is CPU" in said and "another --out" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ops": ["attention"]}, "unknown ops.*'attention'.*pair_errors"),
        ({"start": "middle"}, "--from middle: there are smoke, tests"),
        ({"ops": ["pair_errors"], "start": "steps"}, "ops alone have only smoke, wide"),
        ({"dry_run": True}, "--dry-run takes --out"),
        ({"assemble": True, "ops": ["pair_errors"]}, "--assemble takes --out DIR alone"),
        ({"assemble": True}, "--assemble takes --out"),
    ],
)
def test_wrong_use_is_named(arguments, message, monkeypatch):
    monkeypatch.setenv(VARIABLE, "stub")  # and given back
    with pytest.raises(ValueError, match=message):
        run(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_no_speed_is_claimed(capsys, monkeypatch):
    monkeypatch.setenv(VARIABLE, "stub")
    assert run() == 0
    printed = capsys.readouterr().out
    assert "No speed was measured" in printed and "pair_errors" in printed
    assert "GB/s" not in printed
