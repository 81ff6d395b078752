"""What `apply_to` does to each class of diffusers that it knows: results/patched_models.json and kernels/MODELS.md.

    [DIFFUSERS_CHECKOUT=...] PYTHONPATH=.:kernels python -m benchmarks.models.patched [CLASS ...]

Of each class, on the tiny models of tests/kernels/ops: the ops that it calls; the errors of output and gradients
against float64, patched and not; and, where DIFFUSERS_CHECKOUT names a checkout of diffusers, the outcomes of its own
tests of that class, patched and not. Classes that are not named keep their figures; with none, all are run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree

from pgdpo_kernels.patch.known import FAMILIES, REASONS
from pgdpo_kernels.patch.replace import OPS

from ..report import RESULTS, machine, write

ROOT = Path(__file__).parents[2]
OPS_TESTS = ROOT / "tests" / "kernels" / "ops"
FILE, PAGE = RESULTS / "patched_models.json", ROOT / "kernels" / "MODELS.md"
CHECKOUT = "DIFFUSERS_CHECKOUT"


def measure(names: list[str]) -> dict[str, dict]:
    """Ops and errors of each class, in a process whose Triton interprets."""
    code = "import sys; from benchmarks.models.patched_case import main; main(sys.argv[1:])"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "kernels", OPS_TESTS)))
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code, *names], env=env, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))


def own_tests(names: list[str], checkout: Path) -> dict[str, dict | None]:
    """Of each class diffusers' tests of it, counted by outcome, and which of them the patch changes; None: no tests."""
    folder = checkout / "tests" / "models" / "transformers"
    said = {file: file.read_text("utf-8") for file in sorted(folder.glob("test_*.py"))}
    files = {
        name: [x for x, text in said.items() if re.search(rf"\breturn {name}\b|= {name}$", text, re.M)]
        for name in names
    }
    every = sorted(set().union(*files.values()))
    plain, patched = (outcomes(every, checkout, patch) for patch in ("0", "1"))
    return {name: compared(files[name], plain, patched) for name in names}


def is_of(name: str, text: str) -> bool:
    return re.search(rf"\breturn {name}\b|= {name}$", text, re.MULTILINE) is not None


def compared(files: list[Path], plain: dict[str, str], patched: dict[str, str]) -> dict | None:
    if not files:
        return None
    stems = {file.stem for file in files}
    tests = sorted(test for test in plain.keys() | patched.keys() if stems & set(re.split(r"[.:]", test)))
    pairs = {test: (plain.get(test, "missing"), patched.get(test, "missing")) for test in tests}
    return {
        "plain": Counter(before for before, _ in pairs.values()),
        "patched": Counter(after for _, after in pairs.values()),
        "differ": {test: pair for test, pair in pairs.items() if pair[0] != pair[1]},
    }


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
        total=total_of(result["models"].values()),
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


def total_of(rows: Iterable[dict]) -> str:
    found = [row["own_tests"] for row in rows if row.get("own_tests")]
    passed = [sum(tests[kind].get("passed", 0) for tests in found) for kind in ("patched", "plain")]
    return f"{passed[0]} of {passed[1]} in all"


PAGE_TEXT = """# The models that `apply_to` knows

How often one forward of a tiny model with one block of each kind calls each op; the error of output and all gradients
in bf16, by Triton's kernels, as a multiple of the unpatched model's, both against float64; and how many of the tests
that diffusers has of the class pass with every model in them patched, of those that pass without, {total}. Made by
`python -m benchmarks.models.patched` from [patched_models.json](../benchmarks/results/patched_models.json).

| class | {ops} | error to eager's | diffusers' own tests |
|{columns}
{rows}

## Left as they are

What `apply_to` says of the other transformers in diffusers {diffusers}:

{left}
"""


def main(names: list[str]) -> None:
    kept = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {"models": {}}
    models = {name: row for name, row in kept["models"].items() if name in FAMILIES}
    names = names or sorted(FAMILIES)
    checkout = os.environ.get(CHECKOUT)
    tests = own_tests(names, Path(checkout)) if checkout else {}
    for name, row in measure(names).items():
        row["own_tests"] = tests[name] if checkout else models.get(name, {}).get("own_tests")
        models[name] = row
        print(name, ratio_of(row), tests_of(row["own_tests"]))
    result = {"machine": machine(), "models": dict(sorted(models.items()))}
    write(result, "", FILE)
    PAGE.write_text(page(result), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
