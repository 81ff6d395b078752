"""What the rows of a run amount to: result.json, table.txt, roofline.png, and the summary that a run ends with."""

from __future__ import annotations

import datetime
import json
import re
from collections import Counter
from pathlib import Path

from ..plot import roofline
from ..predict.committed import prediction
from ..report import RESULTS
from . import train_step
from .harness import name_of
from .kernel_tests import JOB
from .rows import read

WRONG = ("smoke", "tests", "exactness")  # where a failure says that the kernels are wrong, not slow


def default_folder(device: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return RESULTS / f"{slug}-{datetime.date.today():%Y%m%d}"


def write(folder: Path) -> int:
    """Assemble a run's rows and print its summary. Returns 1 if anything was wrong, else 0.

    Raises:
        FileNotFoundError: no rows there.
    """
    result = assemble(read(folder))
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "table.txt").write_text(table(result["rows"]) + "\n", encoding="utf-8")
    try:
        drawn = roofline(result, folder / "roofline.png")
        picture = "roofline.png" if drawn else "no roofline.png (no case or no copy was measured)"
    except ImportError:
        picture = "no roofline.png (matplotlib is not installed: --assemble draws it where it is)"
    print(
        "\n".join(["", *summary(result), f"{folder}: rows.jsonl, result.json, table.txt, {picture}"]),
        flush=True,
    )
    return int(any(row["stage"] in WRONG for row in result["failed"]))


def assemble(rows: list[dict]) -> dict:
    """The last word on each case. What is derived from several rows, such as shares of the copy, is derived here."""
    last = {(row["stage"], row["case"]): row for row in rows if row["status"] == "ok"}
    machine = next((row["machine"] for row in reversed(rows) if "machine" in row), {})
    roofs = [row for row in rows if row["case"] == "roof" and row["status"] == "ok"]
    result = {
        "machine": machine,
        "stub": machine.get("stub", False),
        "roofs": [
            {name: row[name] for name in ("stage", "copy_gb_per_s", "empty_launch_us")} for row in roofs
        ],
        "copy_gb_per_s": max((row["copy_gb_per_s"] for row in roofs), default=None),
        "empty_launch_us": min((us for row in roofs if (us := row["empty_launch_us"])), default=None),
        "passed": dict(Counter(stage for stage, case in last if case != JOB)),
        "exactness": {case: row["figures"] for (stage, case), row in last.items() if stage == "exactness"},
        "blocks": [facts(row) for (stage, _), row in last.items() if stage == "block"],
        "steps": steps(rows),
        "failed": [
            row for row in rows if row["status"] in ("failed", "out of time") and not retried(row, last)
        ],
        "left_out": unfinished(rows, last),
    }
    result["rows"] = speed_rows(last, result["copy_gb_per_s"], result["empty_launch_us"])
    result["prediction"], shares = prediction(machine)
    for row in result["rows"]:
        if (share := shares.get(name_of(row))) is not None:
            row["predicted_share"] = share
    result["compared"] = compare(result["steps"])
    return result


def retried(row: dict, last: dict) -> bool:
    """A later run had it; a variant that raised stays, beside the case's other variants."""
    later = last.get((row["stage"], row["case"]))
    return later is not None and later["at"] > row["at"] and "variant" not in row


def unfinished(rows: list[dict], last: dict) -> list[dict]:
    left = {(row["stage"], row["case"]): row for row in rows if row["status"] == "left out"}
    return [
        {name: row[name] for name in ("stage", "case", "why")} for key, row in left.items() if key not in last
    ]


def facts(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in ("stage", "case", "status", "at")}


def speed_rows(last: dict, copy: float | None, empty: float | None) -> list[dict]:
    """One row a case: its times against eager and Liger-Kernel and, from a measurement of its own, `torch.compile`."""
    cases: dict[str, dict] = {}
    for (stage, case), row in last.items():
        if stage in ("wide", "pairs", "compile"):
            out = cases.setdefault(case, facts(row) | {"us": {}})
            out["us"] = row["us"] | out["us"]
            for beside in row["us"].keys() - {"fused"}:
                if "fused" in row["us"]:
                    out[f"times_{beside}"] = row["us"][beside] / row["us"]["fused"]
    for row in cases.values():
        row["gb_per_s"] = {name: row["moved_bytes"] / us / 1e3 for name, us in row["us"].items()}
        if "fused" in row["us"] and copy:
            row["share_of_copy"] = row["gb_per_s"]["fused"] / copy
        if "fused" in row["us"] and empty:
            row["empty_launches"] = row["us"]["fused"] / (empty * row["launches"])
    return list(cases.values())


def steps(rows: list[dict]) -> dict[str, dict]:
    """Each variant of whole steps; of one that was cut off, the steps that it had."""
    parts: dict[str, list[dict]] = {}
    out: dict[str, dict] = {}
    for row in rows:
        name = row["case"].removeprefix("step ")
        if row["stage"] != "steps" or name not in train_step.VARIANTS:
            continue
        if row["status"] == "part":
            if row["step"] == 1:
                parts[name] = []
            parts.setdefault(name, []).append(row)
        elif row["status"] == "ok":
            out[name] = facts(row)
    for name, found in parts.items():
        out.setdefault(name, train_step.summary(found) | {"cut_off_after": len(found)})
    return out


def compare(variants: dict[str, dict]) -> dict:
    """Speed and memory of b, c, d, f relative to a."""
    if "a" not in variants:
        return {}
    base = variants["a"]
    return {
        name: {
            "times_a": found["pairs_per_second"] / base["pairs_per_second"],
            "memory_of_a": found["peak_memory"] / base["peak_memory"],
        }
        for name, found in variants.items()
        if name in "bcdf"
    }


def table(rows: list[dict]) -> str:
    head = f"{'op':66} {'MB':>8} {'moved MB':>8} {'fused us':>9} {'GB/s':>6} {'of copy':>7} {'predicted':>9} "
    lines = [head + f"{'x eager':>7} {'x compile':>9} {'x liger':>7} {'launches':>8} {'host us':>8}"]
    for row in rows:
        sizes = f"{row['tensor_bytes'] / 1e6:8.2f} {row['moved_bytes'] / 1e6:8.2f}"
        us, rate = row["us"].get("fused"), row["gb_per_s"].get("fused")
        lines.append(
            f"{name_of(row):66} {sizes} {number(us, '9.1f')} {number(rate, '6.0f')} "
            f"{number(row.get('share_of_copy'), '7.1%')} {number(row.get('predicted_share'), '9.1%')} "
            f"{number(row.get('times_eager'), '7.2f')} {number(row.get('times_compile'), '9.2f')} "
            f"{number(row.get('times_liger'), '7.2f')} {number(row.get('empty_launches'), '8.2f')} "
            f"{number(row.get('host_us', {}).get('fused'), '8.1f')}"
        )
    return "\n".join(lines)


def number(value: float | None, form: str) -> str:
    return f"{value:{form}}" if value is not None else "-".rjust(int(form.split(".")[0] or 1))


def step_lines(variants: dict[str, dict]) -> list[str]:
    lines = [
        f"{'step':5}{'s a step':>10} {'pairs/s':>9} {'tokens/s':>10} {'MFU':>6} {'peak GB':>9} {'planned GB':>11}"
    ]
    for name, row in variants.items():
        planned = row["planned_peak"] / 1e9 if "planned_peak" in row else None
        cut = f"  cut off after {row['cut_off_after']} steps" if "cut_off_after" in row else ""
        lines.append(
            f"{name:5}{row['seconds']:10.2f} {row['pairs_per_second']:9.3f} {row['tokens_per_second']:10.0f} "
            f"{number(row['mfu'], '6.0%')} {row['peak_memory'] / 1e9:9.2f} {number(planned, '11.2f')}{cut}"
        )
    return lines


def summary(result: dict) -> list[str]:
    """At most 40 lines: what a log cut to its end still shows."""
    machine = result["machine"]
    lines = [f"{machine.get('device')}, torch {machine.get('torch')}, triton {machine.get('triton')}"]
    if result["stub"]:
        lines.append("A STUB DRIVER ON A CPU: this shows that everything runs. The times say nothing.")
    roofs = "; ".join(
        f"{r['copy_gb_per_s']:.0f} GB/s, {number(r['empty_launch_us'], '.1f')} us" for r in result["roofs"]
    )
    lines.append(f"copy and empty launch, start and end: {roofs or 'not measured'}")
    if found := result["prediction"]:
        kernels = "these kernels" if found["same_kernels"] else "kernels of another tree"
        lines.append(f"predicted for {found['device']}, {kernels}: {found['file']}")
    passed = ", ".join(
        f"{stage} {count}" for stage, count in result["passed"].items() if stage not in ("machine", "end")
    )
    lines.append(f"ok: {passed or 'nothing'}")
    widest = {}
    for row in sorted(result["rows"], key=lambda row: -row["tensor_bytes"]):
        if "form" not in row:
            widest.setdefault((row["op"], row["direction"]), row)
    lines += table(list(widest.values())).splitlines()
    for block in result["blocks"]:
        lines.append(
            f"{block['op']}: " + ", ".join(f"{name} {us:.0f} us" for name, us in block["us"].items())
        )
    lines += step_lines(result["steps"]) if result["steps"] else []
    lines += shortened(
        "failed", [f"{r['stage']} {r['case']} {r.get('variant', '')}: {r['why']}" for r in result["failed"]]
    )
    why = Counter((row["stage"], row["why"]) for row in result["left_out"])
    lines += shortened("left out", [f"{stage}: {count} ({reason})" for (stage, reason), count in why.items()])
    return lines[:39]


def shortened(title: str, lines: list[str], most: int = 5) -> list[str]:
    if not lines:
        return [f"{title}: nothing"]
    more = [f"  and {len(lines) - most} more in result.json"] if len(lines) > most else []
    return [f"{title}: {len(lines)}", *(f"  {line[:150]}" for line in lines[:most]), *more]
