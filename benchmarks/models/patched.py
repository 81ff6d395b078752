"""What `apply_to` does to each class of diffusers that it knows: results/patched_models.json and kernels/MODELS.md.

    [DIFFUSERS_CHECKOUT=...] PYTHONPATH=.:kernels python -m benchmarks.models.patched [CLASS ...]

Of each class, on the tiny models of tests/kernels/ops: the ops that it calls; the errors of output and gradients
against float64, patched and not; and, where DIFFUSERS_CHECKOUT names a checkout of diffusers, the outcomes of its own
tests of that class, patched and not. Classes that are not named keep their figures; with none, all are run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from pgdpo_kernels.patch.known import FAMILIES, REASONS
from pgdpo_kernels.patch.replace import OPS

from ..report import RESULTS, machine, write

ROOT = Path(__file__).parents[2]
OPS_TESTS = ROOT / "tests" / "kernels" / "ops"
FILE, PAGE = RESULTS / "patched_models.json", ROOT / "kernels" / "MODELS.md"
CHECKOUT = "DIFFUSERS_CHECKOUT"


def measure(name: str) -> dict:
    """Ops and errors of a class, in a process whose Triton interprets."""
    code = "import sys, json; from benchmarks.models.patched_case import of; print('\\n' + json.dumps(of(sys.argv[1])))"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", OPS_TESTS)))
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code, name], env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def own_tests(name: str, checkout: Path) -> dict | None:
    """Outcomes of diffusers' tests of a class, counted, and which of them the patch changes; None: it has none."""
    folder = checkout / "tests" / "models" / "transformers"
    files = [file for file in sorted(folder.glob("test_*.py")) if f" {name}\n" in file.read_text("utf-8")]
    if not files:
        return None
    plain, patched = (outcomes(files, checkout, patch) for patch in ("0", "1"))
    differ = {test: [plain.get(test), patched.get(test)] for test in plain.keys() | patched.keys()}
    differ = {test: pair for test, pair in sorted(differ.items()) if pair[0] != pair[1]}
    return {"plain": Counter(plain.values()), "patched": Counter(patched.values()), "differ": differ}


def outcomes(files: list[Path], checkout: Path, patch: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        paths = os.pathsep.join([*map(str, (ROOT / "kernels", OPS_TESTS)), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "PGDPO_PATCH": patch, "PYTHONPATH": paths, "PGDPO_KERNELS_BACKEND": "eager"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "diffusers_plugin", "-p", "no:cacheprovider"]
        subprocess.run(
            [*command, f"--junit-xml={report}", *map(str, files)], cwd=checkout, env=env, stdout=sys.stderr
        )
        found = {}
        for case in ElementTree.parse(report).iter("testcase"):
            bad = {"failure": "failed", "error": "failed", "skipped": "skipped"}
            kind = next((bad[child.tag] for child in case if child.tag in bad), "passed")
            found[f"{case.get('classname')}::{case.get('name')}"] = kind
        return found


def page(result: dict) -> str:
    """kernels/MODELS.md."""
    rows = []
    for name in sorted(FAMILIES):
        row = result["models"].get(name, {})
        calls = [str(row.get("calls", {}).get(op, "")) for op in OPS]
        rows.append("| " + " | ".join([name, *calls, ratio_of(row), tests_of(row.get("own_tests"))]) + " |")
    left = [f"- {name}: {reason}" for name, reason in sorted(REASONS.items())]
    return PAGE_TEXT.format(
        ops=" | ".join(f"`{op}`" for op in OPS),
        columns="---|" * (len(OPS) + 3),
        rows="\n".join(rows),
        diffusers=result["machine"]["packages"]["diffusers"],
        left="\n".join(left),
    )


def ratio_of(row: dict) -> str:
    if "errors" not in row:
        return "not measured"
    ours, eager = row["errors"]["bfloat16, triton"]
    return f"{ours / eager:.2f}"


def tests_of(found: dict | None) -> str:
    if not found:
        return "it has none"
    passed = found["plain"].get("passed", 0), found["patched"].get("passed", 0)
    return f"{passed[1]} of {passed[0]} pass" + (
        f", {len(found['differ'])} differ" if found["differ"] else ""
    )


PAGE_TEXT = """# The models that `apply_to` knows

How often one forward of a tiny model with one block of each kind calls each op; the error of output and all gradients
in bf16, by Triton's kernels, as a multiple of the unpatched model's, both against float64; and how many of the tests
that diffusers has of the class pass with every model in them patched, of those that pass without. Made by
`python -m benchmarks.models.patched` from [patched_models.json](../benchmarks/results/patched_models.json).

| class | {ops} | error to eager's | diffusers' own tests |
|{columns}
{rows}

## Left as they are

What `apply_to` says of the other transformers in diffusers {diffusers}:

{left}
"""


def main(names: list[str]) -> None:
    result = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {"models": {}}
    models = {name: row for name, row in result["models"].items() if name in FAMILIES}
    checkout = os.environ.get(CHECKOUT)
    for name in names or FAMILIES:
        row = measure(name)
        if checkout:
            row["own_tests"] = own_tests(name, Path(checkout))
        elif "own_tests" in models.get(name, {}):
            row["own_tests"] = models[name]["own_tests"]
        models[name] = row
        print(name, ratio_of(row), tests_of(row.get("own_tests")), flush=True)
        result = {"machine": machine(), "models": dict(sorted(models.items()))}
        write(result, "", FILE)
    PAGE.write_text(page(result), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
