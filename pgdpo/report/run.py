"""`pgdpo report`: the page of what there is of a run, at any time."""

from __future__ import annotations

from pathlib import Path

from pgdpo.checkpoints.published import at_step
from pgdpo.checkpoints.record import identity_of, read_record
from pgdpo.config import Config
from pgdpo.messages.console import say
from pgdpo.report.preview import write_preview
from pgdpo.report.report import write_report


def report_run(config: Config, *, step: int | None = None, out: Path | None = None) -> Path:
    """`report.html` in the run's folder or `out`: the prepared pairs, and what there is of the run, up to `step`."""
    folder, out = config.run_dir, out or config.run_dir
    checkpoint = None if step is None else at_step(folder, step)
    write_preview(config, out, trained_on=identity_of(folder, checkpoint))
    report = write_report(folder, read_record(folder, checkpoint) or config, out=out, step=step)
    say(f"report  -> {report}")
    return report
