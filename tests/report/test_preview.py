"""`pgdpo report` shows the pairs that training visits, as the model receives them, before and after training."""

import json
import re

import numpy as np
import pytest

from pgdpo.video import read_video, write_video
from tests.worlds import run_pgdpo, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels")


def test_pairs_are_shown_before_anything_is_trained(config_file):
    run_pgdpo("report", config_file, "evaluate.report_pairs=5", "evaluate.fps=4")
    run = config_file.parent / "out" / "dpo"
    preview = json.loads((run / "pairs.json").read_text())
    assert len(preview["pairs"]) == 5 and preview["of"] == 12
    page = (run / "report.html").read_text()
    assert page.count("<video") == 10 and "not trained yet" in page and "5 of 12 training pairs" in page
    manifest = config_file.parent / "out" / "toy" / "train.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row, pair in zip(rows, preview["pairs"], strict=False):
        assert pair["id"] == row["id"] and pair["size"] == [4, 16, 16]
        for side in ("chosen", "rejected"):
            # What is shown is what was prepared: the source clip's first frames at the model's size.
            shown = read_video(run / pair[side], num_frames=4, size=(16, 16)).astype(int)
            source = read_video(manifest.parent / row[side], num_frames=4, size=(16, 16)).astype(int)
            assert np.abs(shown - source).mean() < 6


def test_selection_is_what_is_shown_and_events_are_told(config_file):
    rule = "data.select=[{by: margin, score: total, low: 0.5}]"
    run_pgdpo("train", config_file, rule, "train.steps=2")
    run_pgdpo("evaluate", config_file, rule, "train.steps=2")
    run = config_file.parent / "out" / "dpo"
    assert json.loads((run / "pairs.json").read_text())["of"] == 6
    page = (run / "report.html").read_text()
    assert "6 of 6 training pairs" in page and "margin: 6 of 12 pairs stay" in page


def test_a_run_that_is_trained_but_not_evaluated(config_file):
    run_pgdpo("train", config_file, "train.steps=2")
    run_pgdpo("report", config_file, "evaluate.report_pairs=1")
    page = (config_file.parent / "out" / "dpo" / "report.html").read_text()
    assert "2 steps so far" in page and "Not evaluated yet" in page and 'id="curves"' in page


def test_segments_are_drawn(config_file):
    """Labels of a pair's segments stand below its clips."""
    index = config_file.parent / "out" / "prepared" / "train" / "index.json"
    prepared = json.loads(index.read_text())
    for pair in prepared["pairs"]:
        pair["segment_labels"] = [1, -1]
    (config_file.parent / "out" / "prepared").unlink()
    copied = index.parent
    copied.parent.mkdir()
    world = (config_file.parent / "out" / "toy").resolve().parent / "prepared" / "train"
    copied.mkdir()
    for file in world.iterdir():
        (copied / file.name).symlink_to(file)
    (copied / "index.json").unlink()
    (copied / "index.json").write_text(json.dumps(prepared))
    (config_file.parent / "out" / "toy").unlink()  # its manifest has no such labels
    run_pgdpo("report", config_file, "evaluate.report_pairs=1")
    page = (config_file.parent / "out" / "dpo" / "report.html").read_text()
    assert 'aria-label="Preference by segment: 1, -1"' in page
    assert page.count('<i class="chosen"></i>') == 1 and page.count('<i class="rejected"></i>') == 1


def test_groups_are_shown_sample_by_sample_the_best_first(tmp_path, tiny_wan):
    """From a group's manifest to the page: K clips, with their ratings below, in the words of groups."""
    rows = []
    for number in range(2):
        samples = []
        for place in range(3):
            name = f"{number}-{place}.mp4"
            write_video(tmp_path / name, np.full((4, 16, 16, 3), 40 * number + 60 * place, np.uint8), 8)
            samples.append(
                {"clip": name, "rank": 2 - place, "score": 0.25 * place, "caption": f"ball {place}"}
            )
        rows.append({"id": f"g{number}", "prompt": "a red ball", "samples": samples})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "rows.jsonl"), "held_out": None}
    train = {"global_batch_groups": 1, "micro_batch_groups": 1}
    config = write_config(tmp_path / "config.yaml", tmp_path / "out", tiny_wan, data=data, train=train)
    run_pgdpo("prepare", config)
    run_pgdpo("report", config, "evaluate.report_pairs=1", "objective={name: dpo, beta: 500, pairing: all}")
    run = tmp_path / "out" / "dpo"
    [group] = json.loads((run / "pairs.json").read_text())["pairs"]
    assert [*group["names"]] == ["sample2", "sample1", "sample0"]
    for place in range(3):
        shown = read_video(run / group[f"sample{place}"], num_frames=4, size=(16, 16))
        assert abs(shown.mean() - 60 * place) < 12
    page = (run / "report.html").read_text()
    assert page.count("<video") == 3 and "1 of 2 training groups of 3 samples" in page
    assert re.findall(r"sample \d(?=</a>)|(?<=<b>)(?:rank|score) [\d.]+", page) == [
        *("sample 2", "rank 0", "score 0.5"),
        *("sample 1", "rank 1", "score 0.25"),
        *("sample 0", "rank 2", "score 0"),
    ]
    assert "<dt>caption of sample 1</dt><dd>ball 1</dd>" in page
    assert 'href="#pairs">Groups</a>' in page and "of 1 groups of 3 samples</dd>" in page
    # An objective that compares the best with the worst holds these alone, under their names.
    run_pgdpo("report", config, "evaluate.report_pairs=1")
    page = (run / "report.html").read_text()
    assert re.findall(r"sample \d(?=</a>)|(?<=<b>)rank \d", page) == [
        "sample 2",
        "rank 0",
        "sample 0",
        "rank 2",
    ]
    assert (
        page.count("<video") == 2
        and "1 of 2 training groups of 3 samples, of each the best and the worst" in page
    )
    assert "<dt>caption of sample 2</dt><dd>ball 2</dd>" in page and "caption of sample 1" not in page
