"""`kernels/examples`: every patch is small and fits, and the trainer's losses stay what they were."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "kernels/examples"
ROWS = ROOT / "benchmarks/results/other_trainers.json"
QUICK = "peft_lora"


def load_run():
    spec = importlib.util.spec_from_file_location("other_trainers_run", EXAMPLES / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


run = load_run()
RELEASED = [name for name in run.NAMES if not hasattr(run.load(name), "CHECKOUT")]
CHECKOUTS = [name for name in run.NAMES if name not in RELEASED]


def compared(name: str) -> dict:
    """The row, or a test that is left out by the name of what is missing."""
    try:
        return run.compare(name, ["eager"])
    except run.Skipped as reason:
        pytest.skip(f"{name} {reason}")


def check(row: dict) -> None:
    """Equal within what the loss makes of a few roundings of its dtype, over steps that move the loss."""
    assert row["patched"]["eager"]["max_relative"] <= 8 * row["eps"] * row["gain"]
    assert row["steps"] >= 5
    assert len(set(row["losses"])) == row["steps"]


@pytest.mark.parametrize("name", run.NAMES)
def test_patches_are_small(name):
    added, removed = run.patch_lines(name)
    assert 1 <= added <= 15 and removed <= 15
    text = (EXAMPLES / name / "patch.diff").read_text()
    assert "pgdpo_kernels" in text
    assert not [line for line in text.splitlines() if line.startswith(" ")], (
        "no lines of others but those removed"
    )


@pytest.mark.parametrize("name", RELEASED)
def test_patches_fit(name, tmp_path):
    run.sources(name, run.load(name), tmp_path)
    before = (tmp_path / "train.py").read_text()
    assert "pgdpo" not in before
    run.patch(name, tmp_path)
    after = (tmp_path / "train.py").read_text()
    compile(after, "train.py", "exec")
    added, removed = run.patch_lines(name)
    assert len(after.splitlines()) - len(before.splitlines()) == added - removed


def test_a_patch_of_other_sources_is_refused(tmp_path):
    (tmp_path / "train.py").write_text("import torch\n")
    with pytest.raises(run.subprocess.CalledProcessError):
        run.patch(QUICK, tmp_path)


@pytest.mark.parametrize("name", CHECKOUTS)
def test_without_a_checkout(name, monkeypatch):
    variable, commit, _ = run.load(name).CHECKOUT
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(run.Skipped, match=f"{variable}.*{commit[:12]}"):
        run.checkout(run.load(name))
    monkeypatch.setenv(variable, str(EXAMPLES))
    with pytest.raises(run.Skipped, match=f"{variable}.*{commit}.*fetch"):
        run.checkout(run.load(name))


def test_without_a_package():
    missing = type("example", (), {"PACKAGES": ("a-package-that-nobody-has",)})
    with pytest.raises(run.Skipped, match="pip install a-package-that-nobody-has"):
        run.versions(missing)


def test_a_trainer_that_fails_says_why(monkeypatch):
    broken = run.load(QUICK)
    monkeypatch.setattr(broken, "command", lambda source, work: ["-c", "raise SystemExit('no such luck')"])
    monkeypatch.setattr(broken, "PACKAGES", ())
    monkeypatch.setattr(run, "load", lambda name: broken)
    with pytest.raises(RuntimeError, match="(?s)peft_lora, untouched: exit 1, 0 losses.*no such luck"):
        run.run(QUICK)


def test_the_page_has_the_measured_figures():
    page, rows = (EXAMPLES / "README.md").read_text(), json.loads(ROWS.read_text())
    assert set(rows) <= set(run.NAMES)
    for name, row in rows.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| [{name}]({name}/) "))
        assert f"+{row['lines_added']} −{row['lines_removed']}" in line
        for found in row["patched"].values():
            assert f"{found['max_relative']:.0e}" in line, (name, found["max_relative"])


@pytest.mark.timeout(300)
def test_peft_keeps_its_losses():
    check(compared(QUICK))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [name for name in run.NAMES if name != QUICK])
def test_trainers_keep_their_losses(name):
    check(compared(name))
