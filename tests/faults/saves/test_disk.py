"""Fault 12: no room for a save. The run goes on, the last good checkpoint stays, nothing half-written is left."""

import json
from types import SimpleNamespace

import pytest

from pgdpo.checkpoints import checkpoint
from pgdpo.checkpoints.published import checkpoints_of, latest_checkpoint
from pgdpo.messages.errors import InputError
from tests.worlds import losses, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")


def events(run_dir, kind: str) -> list[dict]:
    rows = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


@pytest.mark.parametrize(
    ("publishing", "error"),
    [(False, "[Errno 27]"), pytest.param(True, "[Errno 28]", marks=pytest.mark.slow)],
    ids=["writing", "publishing"],
)
def test_the_disk_fills_up_inside_a_save(start, fault_config, straight, tally, publishing, error):
    run_dir = fault_config.parent / "out" / "full"
    hook = {"hook": "full_disk", "save": 1, "publishing": publishing}
    start("train", fault_config, "name=full", "train.steps=6", **hook).succeed()
    names = [path.name for path in (run_dir / "checkpoints").iterdir()]
    (skipped,) = events(run_dir, "checkpoint skipped")
    named = f"rank 0: OSError: {error}" in skipped["message"] and skipped["step"] == 4
    curve = losses(run_dir.parent, "full") == straight(6)
    kept = sorted(names) == ["step-00000002", "step-00000006"]
    tally(12, 1, named and curve and kept and latest_checkpoint(run_dir).name == "step-00000006")


def test_too_little_is_free_before_a_save(config_file, monkeypatch):
    """4 steps, a save after 2 and 4; the state takes 12 bytes a trained number, and 1.2 times that must be free."""
    free = iter([10**9, 10_000])
    monkeypatch.setattr(
        checkpoint, "shutil", SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=next(free)))
    )
    with pytest.raises(InputError, match="no room for the last checkpoint: make room and --resume"):
        run_pgdpo("train", config_file, "name=tight")
    run_dir = config_file.parent / "out" / "tight"
    (skipped,) = events(run_dir, "checkpoint skipped")
    assert (
        "10,000 bytes are free" in skipped["message"] and "1.2 times that must be free" in skipped["message"]
    )
    assert [path.name for path in checkpoints_of(run_dir)] == ["step-00000002"]
    assert len(losses(run_dir.parent, "tight")) == 4
