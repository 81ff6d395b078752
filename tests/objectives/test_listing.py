"""`pgdpo objectives`: a line an objective, one in full, all as Markdown."""

import re
import subprocess
import sys

import pytest

from pgdpo.messages.errors import InputError
from pgdpo.objectives import available
from tests.worlds import run_pgdpo


def listed(*arguments: str) -> str:
    """What `pgdpo objectives` shows; it imports no torch."""
    program = (
        "import sys; from pgdpo.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "sys.exit(3 * ('torch' in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "objectives", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_is_a_line_an_objective_and_imports_no_torch():
    lines = listed().splitlines()
    assert [line.split()[0] for line in lines if line[:1].isalpha()].count("pg_dpo") == 1
    for name in available():
        [line] = [line for line in lines if line.startswith(f"{name} ")]
        what, paper = re.split(r"\s{2,}", line)[1:]
        assert len(what) > 10 and paper
    assert all(len(line) <= 80 for line in lines)
    assert "arXiv 2511.19049" in next(line for line in lines if line.startswith("pg_dpo "))


def test_one_objective_is_shown_with_formula_options_and_confidence():
    page = " ".join(listed("rdpo").split())
    assert "[(1−ε)ℓ(z) − εℓ(−z)]/(1−2ε)" in page and "label_smoothing" in page
    assert "the authors' public code" in page and "2403.00409" in page


def test_markdown_has_a_row_for_every_name():
    rows = listed("--markdown").splitlines()
    assert all(any(row.startswith(f"| `{name}` |") for row in rows) for name in available())


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean `pg_dpo`"):
        run_pgdpo("objectives", "pg_dpoo")
