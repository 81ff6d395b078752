"""Which of a run's checkpoints is the best by a figure of held-out pairs: read from what was measured, never stored."""

from __future__ import annotations

from pathlib import Path

from pgdpo.checkpoints.published import checkpoints_of, step_of
from pgdpo.config.train import LESS_IS_BETTER
from pgdpo.files.atomic import read_json_lines
from pgdpo.messages.formats import is_number

HELD_OUT = "held_out.jsonl"  # one line a look at held-out pairs, written before that step's checkpoint


def read_held_out(run_dir: Path) -> list[dict]:
    """Rows of a run's `held_out.jsonl`: step, pairs, draws, figures with their intervals, `buckets`."""
    return read_json_lines(run_dir / HELD_OUT)


def measured(run_dir: Path, figure: str) -> dict[int, float]:
    """Step -> the figure, of the checkpoints that were measured, by step."""
    values = {row["step"]: (row.get(figure) or {}).get("value") for row in read_held_out(run_dir)}
    steps = sorted({step_of(path) for path in checkpoints_of(run_dir)})
    return {step: values[step] for step in steps if is_number(values.get(step))}


def best_step(run_dir: Path, figure: str | None) -> int | None:
    """The step of the best checkpoint by `figure`; of equal ones the later; None where none was measured."""
    found = {} if figure is None else measured(run_dir, figure)
    sign = -1 if figure is not None and LESS_IS_BETTER[figure] else 1
    return max(found, key=lambda step: (sign * found[step], step), default=None)
