"""What a terminal shows of a run on its way, however narrow it is."""

import io

import pytest
from rich.console import Console

from pgdpo.messages import console

NOTE = "loss 0.693  acc 0.500  displaced 0.500"


def shown(monkeypatch, width, description, note):
    """The last line of a bar that stands at step 12 of 600, seven seconds each, on a terminal of that width."""
    seconds = [0.0]
    file = io.StringIO()
    terminal = Console(
        width=width, force_terminal=True, color_system=None, file=file, get_time=lambda: seconds[0]
    )
    monkeypatch.setattr(console, "console", terminal)
    with console.progress_bar(description, total=600) as bar:
        for _ in range(12):
            seconds[0] += 7.0
            bar.advance(note=note)
    lines = [line for line in file.getvalue().replace("\r", "\n").splitlines() if "eta" in line]
    return lines[-1].replace("\x1b[2K", "").rstrip()


@pytest.mark.quick
@pytest.mark.parametrize(
    "description", ["train pg_dpo", "reference errors, 512 rank(s) of the whole cluster"]
)
@pytest.mark.parametrize("note", [NOTE, f"{NOTE}  and more of it than any terminal has room for"])
@pytest.mark.parametrize("width", [80, 60])
def test_a_narrow_terminal_shows_step_and_eta_whole(monkeypatch, width, note, description):
    line = shown(monkeypatch, width, description, note)
    assert len(line) <= width and " 12/600 0:01:24 eta 1:08:36 " in line
    assert line.startswith(description[:5]) and "loss" in line


@pytest.mark.quick
def test_a_wide_terminal_shows_all(monkeypatch):
    line = shown(monkeypatch, 120, "train pg_dpo", NOTE)
    assert line.startswith("train pg_dpo ") and line.endswith(f" 2%  12/600 0:01:24 eta 1:08:36 {NOTE}")
    assert "╸" in line  # the bar


@pytest.mark.quick
def test_what_fits_is_not_shortened(monkeypatch):
    """A bar without a note: nothing is cut while the bar can still give way."""
    description = "encode clips (rank 0's share of 8)"
    line = shown(monkeypatch, 80, description, None)
    assert line.startswith(f"{description} ") and line.endswith("12/600 0:01:24 eta 1:08:36")
