"""Predictions of speed: machine code is read for what it says, and a measurement's report has them beside the truth."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import assembly, stages
from benchmarks.gpu.harness import name_of
from benchmarks.predict import committed, model
from benchmarks.predict.machine_code import parse
from benchmarks.predict.path import timeline, ways

TARGETS = ("sm_90", "sm_120")  # arguments lie in other places


@functools.cache
def compiled() -> dict:
    """By `sums_in_a_loop.py`, in a process where kernels are no plain Python."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    root = Path(__file__).resolve().parents[2]
    env["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "kernels"), env.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(__file__).with_name("sums_in_a_loop.py")), *TARGETS]
    return json.loads(
        subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, timeout=240).stdout
    )


@pytest.mark.parametrize("target", TARGETS)
def test_a_kernel_of_known_contents_is_read(target):
    """1024 fp32 numbers on 128 threads: two loads and two stores of 16 bytes; 5 shuffles a warp, 2 for four warps."""
    one, three = (compiled()["contents"][f"{sums} {target}"] for sums in (1, 3))
    for sums, found in ((1, one), (3, three)):
        expected = [["LDG", False, ["vector"]]] * 2 + [["LDG", True, ["x"]]] * 2 + [["STG", True, ["y"]]] * 2
        assert sorted(found["accesses"]) == sorted(expected)
        assert found["shuffles"] == 7 * sums
        facts = found["facts"]
        assert (facts["turns"], facts["threads"], facts["spill"]) == (8, 128, 0)
        assert facts["barriers"] >= 2 * sums
        assert found["demand"]["memory_bytes"] == pytest.approx(8 * 1024 * 4 * 2, rel=0.01)
        assert found["demand"]["cache_bytes"] == 1024 * 4 + 8 * 1024 * 4 * 2
    assert three["facts"]["barriers"] == 3 * one["facts"]["barriers"]
    assert three["facts"]["instructions"] > one["facts"]["instructions"]
    waits = 8 * 2 * one["facts"]["barriers"] * model.BARRIER
    assert three["demand"]["cycles"] - one["demand"]["cycles"] > waits


def test_an_op_is_recorded_as_a_gpu_would_launch_it():
    found = compiled()["recorded"]
    assert found["kernel"] == "gate_forward" and not found["emulates"]
    assert found["programs"] * 4 >= 200_000 and found["threads"] in (128, 256)
    assert found["types"]["x"] == "*bf16" and found["types"]["gate"] == "*fp32"
    assert {"x", "branch", "gate", "hidden"} <= set(found["aligned"])


# A division with a slow way, then two ways that each have a loop: the first one's has a call and can be passed over,
# the second one's row has two loads.
SASS = """
        /*0000*/                   LDC.64 R2, c[0x0][0x210] ;          /* 0x0000840000027b82 */
        /*0010*/              @!P0 BRA 0x30 ;
        /*0020*/                   CALL.REL.NOINC 0x100 ;
        /*0030*/               @P1 BRA 0x90 ;
        /*0034*/               @P4 BRA 0x80 ;
        /*0040*/                   LDG.E.128 R4, desc[UR4][R2.64+0x800] ;
        /*0050*/                   FFMA R8, R7, R8, R4 ;
        /*0054*/               @P5 BRA 0x60 ;
        /*0058*/                   CALL.REL.NOINC 0x100 ;
        /*0060*/                   STG.E.64 desc[UR4][R2.64], R8        &req={3,0} &rd=0x0     ?WAIT2_END_GROUP ;
        /*0070*/               @P2 BRA 0x40                             ?WAIT5_END_GROUP ;
        /*0080*/                   EXIT ;
        /*0090*/               @P3 LDG.E R4, desc[UR4][R2.64] ;
        /*00a0*/                   LDG.E.U16 R5, desc[UR4][R2.64+0x4] ;
        /*00b0*/                   IMAD.WIDE R6, R4, R5, R2 ;
        /*00c0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00d0*/              @!P2 BRA 0x90 ;
        /*00e0*/                   EXIT ;
        /*00f0*/                   BRA 0xf0;
        /*0100*/                   RET.REL.NODEC R20 `(kernel) ;
"""


def test_instructions_name_the_registers_that_they_read_and_write():
    code = {one.address: one for one in parse(SASS)}
    assert len(code) == 20
    assert code[0x0].writes == {"R2", "R3"}
    load, sum_, store, small, wide = (code[at] for at in (0x40, 0x50, 0x60, 0xA0, 0xB0))
    assert (load.bytes, load.writes, load.reads) == (16, {"R4", "R5", "R6", "R7"}, {"UR4", "R2", "R3"})
    assert (sum_.reads, sum_.writes) == ({"R7", "R8", "R4"}, {"R8"})
    assert (store.bytes, store.reads, store.writes) == (8, {"UR4", "R2", "R3", "R8", "R9"}, set())
    assert (small.bytes, small.writes) == (2, {"R5"})
    assert wide.writes == {"R6", "R7"}
    assert [one.address for one in code.values() if one.guarded] == [0x10, 0x30, 0x34, 0x54, 0x70, 0x90, 0xD0]
    assert code[0xD0].jump == 0x90 and code[0xC0].jump is None


def test_a_way_leads_past_slow_calls_and_through_loops():
    first, second = ways(parse(SASS))
    assert [one.address for one in first.steps] == [0, 0x10, 0x30, 0x34, 0x40, 0x50, 0x54, 0x60, 0x70, 0x80]
    assert [one.address for one in second.steps] == [0, 0x10, 0x30, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0]
    assert [first.steps[place].opcode for place in first.loop] == ["LDG", "FFMA", "BRA", "STG", "BRA"]
    assert (second.in_a_turn("LDG"), second.in_a_turn("BAR"), second.in_a_turn()) == (2, 1, 5)
    assert len(list(first.places(3))) == len(first.steps) + 2 * len(first.loop)


def test_a_program_waits_for_what_it_needs():
    """Two loads before the first use are one wait; a load in each turn of a loop is one a turn."""
    first, second = ways(parse(SASS))
    latency = dict.fromkeys(range(20), 1000.0)
    alone = timeline(first, 5, 128, latency, barrier=50.0)
    assert alone.load_phases == 5 and alone.in_flight == 16
    assert 5 * 1000 < alone.cycles < 5 * 1000 + 200
    assert timeline(first, 5, 512, latency, barrier=50.0).cycles > alone.cycles
    both = timeline(second, 1, 128, latency, barrier=50.0)
    assert (both.load_phases, both.in_flight) == (1, 6)
    assert timeline(second, 1, 128, latency, barrier=250.0).cycles == both.cycles + 200


def test_programs_of_a_multiprocessor():
    assert model.resident_programs(registers=255, threads=64, shared=0) == 4
    assert model.resident_programs(registers=96, threads=128, shared=0) == 5
    assert model.resident_programs(registers=32, threads=128, shared=0) == 16
    assert model.resident_programs(registers=32, threads=32, shared=0) == 32
    assert model.resident_programs(registers=32, threads=128, shared=100 << 10) == 2
    assert model.resident_programs(registers=255, threads=1024, shared=0) == 1


def test_each_limit_of_a_launch_can_be_the_slowest():
    facts = model.Facts("k", 128, 132 * 1000, 64, 0, 0, 8, 1, 0, 100, 1, 0)
    device = model.DEVICES["H100"]
    free = model.Demand(memory_bytes=0, cache_bytes=0, issue_cycles=0, cycles=0)
    for name, most in (("memory_bytes", 1e6), ("cache_bytes", 1e6), ("issue_cycles", 1e5), ("cycles", 1e5)):
        us = [
            model.launch_us(facts, model.Demand(**{**vars(free), name: share * most}), device)
            for share in (1, 2)
        ]
        assert us[1] == pytest.approx(2 * us[0], rel=0.05), name
    moved = model.Demand(memory_bytes=1e6, cache_bytes=1e6, issue_cycles=0, cycles=0)
    share = 132e3 * 1e6 / model.launch_us(facts, moved, device) / 1e3 / device.copy_gb_per_s
    assert share == pytest.approx(model.ROOF, rel=0.02)


def speed_row(**changed) -> dict:
    facts = {"op": "gate_residual", "direction": "forward", "shape": [1, 100, 64], "dtype": "bfloat16"}
    facts |= {"tensor_bytes": 12800, "moved_bytes": 38400, "launches": 1} | changed
    case = {"stage": "wide", "case": name_of(facts), "status": "ok", "at": "2026-01-01T00:00:00"}
    return case | facts | {"us": {"fused": 2.0, "eager": 8.0, "liger": 3.0}}


def measured_rows(device: str, tree: str = "t") -> list[dict]:
    machine = {"device": device, "triton": "3.6.0", "torch": "2.11", "kernels_tree": tree}
    ok = {"status": "ok", "at": "2026-01-01T00:00:00"}
    return [
        ok | {"stage": "machine", "case": "machine", "machine": machine},
        ok | {"stage": "machine", "case": "roof", "copy_gb_per_s": 3000.0, "empty_launch_us": 3.0},
        speed_row(),
        speed_row(form="trained"),
    ]


@pytest.mark.parametrize(
    ("device", "shown"), [("NVIDIA H100 80GB HBM3", 0.91), ("NVIDIA H200", 0.81), ("NVIDIA L40S", None)]
)
def test_a_report_has_measured_and_predicted_beside_each_other(tmp_path, monkeypatch, device, shown):
    monkeypatch.setattr(committed, "RESULTS", tmp_path)
    case = {name: speed_row()[name] for name in ("op", "direction", "shape", "dtype")}
    case["share_of_copy"] = {"H100": 0.91, "H200": 0.81}
    committed.path_of("3.6.0").write_text(json.dumps({"kernels_tree": "t", "cases": [case]}))
    result = assembly.assemble(measured_rows(device))
    row, trained = result["rows"]
    assert row.get("predicted_share") == shown and "predicted_share" not in trained
    assert row["share_of_copy"] == pytest.approx(38400 / 2.0 / 1e3 / 3000)
    assert (row["times_eager"], row["times_liger"]) == (4.0, 1.5)
    line = next(line for line in assembly.table(result["rows"]).splitlines() if " forward 1x100" in line)
    assert ("91.0%" in line or "81.0%" in line) == (shown is not None)
    said = "\n".join(assembly.summary(result))
    assert ("these kernels" in said) == (shown is not None)
    other = assembly.assemble(measured_rows(device, tree="other"))
    assert ("another tree" in "\n".join(assembly.summary(other))) == (shown is not None)


@pytest.mark.parametrize("triton", ["3.6.0", "3.9.0"])
def test_every_case_of_the_benchmark_has_its_prediction(triton):
    names = {case.name for case in [*stages.hidden_cases(tiny=False), *stages.pair_cases(tiny=False)]}
    for device in ("H100", "H200"):
        found, shares = committed.prediction({"triton": triton, "device": device})
        assert found["device"] == device and set(shares) == names, "run: python -m benchmarks.predict"
        assert all(0 < share <= model.ROOF for share in shares.values())
