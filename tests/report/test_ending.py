"""The top of a report says that its run died, or was stopped."""

import json

import pytest

from pgdpo.config.read import load_config
from pgdpo.report.report import write_report
from tests.worlds import write_config

HOSTILE = "<script>document.title='broken out'</script> & \"quotes\""
ENDED = {"step": 7, "message": f"step 7: {HOSTILE}\nand more"}
PAIRS = {"pairs": [HOSTILE, "0002"], "shares": [0.93, 0.04]}


def top_of_report(folder, events) -> str:
    """What stands above the headline, in one line."""
    config = load_config(write_config(folder / "config.yaml", folder / "out", folder / "model"))
    config.run_dir.mkdir(parents=True)
    lines = (json.dumps(event) + "\n" for event in events)
    (config.run_dir / "events.jsonl").write_text("".join(lines))
    page = write_report(config.run_dir, config).read_text()
    return " ".join(page[page.index("<main") : page.index("<h1>")].split())


@pytest.mark.parametrize(
    ("names", "banner"),
    [
        (["started", "failed"], "failed"),
        (["started", "failed", "beta"], "failed"),
        (["started", "stopped", "resumed", "failed"], "failed"),
        (["started", "failed", "resumed", "stopped"], "stopped"),
        (["started", "failed", "resumed"], None),
        (["started", "stopped", "resumed", "finished"], None),
        (["beta"], None),
        ([], None),
    ],
)
def test_the_newest_standing_decides(tmp_path, names, banner):
    events = [ENDED | {"event": name} | (PAIRS if name == "failed" else {}) for name in names]
    top = top_of_report(tmp_path, events)
    assert ("This run failed in step 7." in top) == (banner == "failed")
    assert ("This run was stopped after step 7." in top) == (banner == "stopped")
    assert ("--resume" in top) == ("and more" in top) == (banner is not None)
    assert ("share of the step's loss" in top) == ("0002 4%" in top) == (banner == "failed")
    assert "<script>" not in top


def test_pairs_without_a_share_and_a_message_without_end(tmp_path):
    failed = {"step": 3, "event": "failed", "message": "word " * 999, "pairs": ["0001"], "shares": []}
    top = top_of_report(tmp_path, [failed])
    assert "Pairs:" in top and "0001" in top and "%" not in top and len(top) < 2000
