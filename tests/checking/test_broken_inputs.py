"""The table of broken inputs: file, key or row, value, what is allowed, what to do, at once and without torch."""

import json
import subprocess
import sys

import pytest

from tests.checking.broken_inputs import CASES, CONFIG

pytestmark = pytest.mark.quick

LEAST_FULL = 0.95
SECONDS = 10


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process said of all cases."""
    folder = tmp_path_factory.mktemp("broken")
    subprocess.run(
        [sys.executable, "-m", "tests.checking.broken_inputs", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    results = json.loads((folder / "found.json").read_text())
    return dict(zip([case.name for case in CASES], results, strict=True))


def lacks(case, problem) -> list[str]:
    """What one error doesn't say of what the table wants."""
    text = problem["text"]
    line = problem["line"] if problem["line"] is not None else problem["row"]
    place = problem["file"].endswith(case.where) and (case.row is None or line in (1, case.row))
    if case.where == CONFIG and case.text is None and not case.arguments:
        place = place and line is not None or bool(case.drop)  # a section that is missing has no line
    parts = {
        "file, line or row": place,
        "key": problem["key"] == case.key,
        "value": case.value in text,
        "allowed": bool(problem["allowed"]) and case.allowed in problem["allowed"] + text,
        "suggestion": bool(problem["suggestion"]),
    }
    return [part for part, there in parts.items() if not there]


def test_the_table_holds_a_hundred_different_inputs():
    assert len(CASES) >= 100
    assert len({case.name for case in CASES}) == len(CASES)


def test_every_input_is_refused_within_seconds_and_without_torch(found):
    for name, result in found.items():
        assert result["exit_code"] == 2 and not result["torch"], name
        assert result["seconds"] < SECONDS, name


def test_nearly_all_are_explained_in_full_and_the_rest_name_the_key(found):
    partial = {}
    for case in CASES:
        errors = [problem for problem in found[case.name]["problems"] if problem["severity"] == "error"]
        missing = min((lacks(case, error) for error in errors), key=len)
        if missing:
            partial[case.name] = missing
            assert any(case.key in error["text"] for error in errors), case.name
    assert len(partial) <= (1 - LEAST_FULL) * len(CASES), partial


def test_a_problem_that_says_less_would_be_seen(found):
    case = CASES[0]
    [error] = [each for each in found[case.name]["problems"] if each["key"] == case.key]
    assert lacks(case, error) == []
    for part, hollow in (("allowed", ""), ("suggestion", ""), ("key", "train"), ("file", "elsewhere.yaml")):
        assert lacks(case, {**error, part: hollow})
