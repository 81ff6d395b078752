"""The marks and the slowest twenty tests, as tables in tests/README.md:

pytest --junitxml=last.xml
python -m tests.slowest last.xml
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

PAGE = Path(__file__).with_name("README.md")
MARKS = {
    "quick": "`pytest -m quick`",
    "slow": "`pytest -m slow`",
    "timeout": "with a limit of its own in place of 300 s",
}
COUNT = 20


class Marked:
    """Counts the marks of all tests that are collected; `slow` goes before `quick`, as in the layers."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            found = {mark.name for mark in item.iter_markers()} & MARKS.keys()
            self.counts.update(found - {"quick"} if "slow" in found else found)
            self.counts["all"] += 1


def marks() -> str:
    marked = Marked()
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--collect-only", "-q", "-m", "slow or not slow", "tests"], plugins=[marked])
    rows = [f"| `{name}` | {marked.counts[name]} | {where} |" for name, where in MARKS.items()]
    rows.append(f"| | {marked.counts['all']} | in all |")
    return "\n".join(["| mark | tests | |", "|---|---|---|", *rows])


def slowest(report: Path) -> str:
    """Of one run: a test's seconds are those of its setup, call and teardown, beside what the other workers did."""
    tests = list(ElementTree.parse(report).iter("testcase"))
    whole = sum(float(test.get("time")) for test in tests)
    tests.sort(key=lambda test: float(test.get("time")), reverse=True)
    rows = [
        f"| {float(t.get('time')):.1f} | `{t.get('classname')}` | {t.get('name')} |" for t in tests[:COUNT]
    ]
    return "\n".join(["| s | file | test |", "|---|---|---|", *rows, f"| {whole:.0f} | | all {len(tests)} |"])


def replaced(page: str, name: str, table: str) -> str:
    """`page` with another table between its comment lines `<!-- name -->` and `<!-- end of name -->`."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(first)}.*{re.escape(last)}", re.DOTALL)
    return pattern.sub(lambda _: f"{first}\n{table}\n{last}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="What `pytest --junitxml` wrote of the whole suite.")
    report = parser.parse_args().report
    page = PAGE.read_text(encoding="utf-8")
    for name, table in {"slowest": slowest(report), "marks": marks()}.items():
        page = replaced(page, name, table)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
