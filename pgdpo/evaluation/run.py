"""`pgdpo evaluate`: results of a run at some of its steps, and the report that shows them."""

from __future__ import annotations

from pgdpo.checkpoints.runs import Both, Run
from pgdpo.engine.engine import leave_distributed
from pgdpo.evaluation.evaluate import evaluate
from pgdpo.evaluation.experts import evaluate_both
from pgdpo.messages.console import is_main_rank, say
from pgdpo.report.preview import write_preview
from pgdpo.report.report import write_report


def evaluate_and_report(*steps: Run | Both) -> dict:
    """A run at one or more steps -> `results.json` and clips of each, and `report.html`, which is of the last.

    Several ranks share the work; the main rank writes. Returns the last one's results, on the main rank.
    """
    run = steps[-1]
    results = evaluate_both(*steps) if isinstance(run, Both) else evaluate(*steps)
    leave_distributed()
    if not is_main_rank():
        return results
    write_preview(run.config, run.out, trained_on=run.parts[0].state["identity"])
    report = write_report(run.folder, run.record, out=run.out)
    say(f"results -> {run.out / 'results.json'}")
    say(f"report  -> {report}")
    return results
