"""`pgdpo check` of groups: clips held against each other, what objectives read of samples, mended, shown."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pgdpo.checking import run_check
from pgdpo.files.atomic import sha256_of
from pgdpo.rows.manifest import scan_manifest
from pgdpo.video import verify_video, write_video
from tests.worlds import run_pgdpo, write_config

pytestmark = pytest.mark.quick

GREY = np.full((6, 16, 16, 3), 100, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Clips of 6 frames at 8 fps, 16x16 pixels, and some with one thing wrong."""
    for number in range(6):
        (tmp_path / "clips").mkdir(exist_ok=True)
        write_video(tmp_path / f"clips/{number}.mp4", GREY + 10 * number, 8)
    write_video(tmp_path / "clips/short.mp4", GREY[:3], 8)
    write_video(tmp_path / "clips/five.mp4", GREY[:5] + 7, 8)
    write_video(tmp_path / "clips/wide.mp4", np.full((6, 16, 32, 3), 90, np.uint8), 8)
    write_video(tmp_path / "clips/fast.mp4", np.full((12, 16, 16, 3), 80, np.uint8), 16)
    (tmp_path / "clips/same.mp4").write_bytes((tmp_path / "clips/0.mp4").read_bytes())
    (tmp_path / "clips/page.mp4").write_text("<html>not found</html>")
    return tmp_path


def group(name, *clips, **more):
    samples = [{"clip": f"clips/{clip}.mp4", "rank": place} for place, clip in enumerate(clips)]
    return {"id": name, "prompt": "a red ball", "samples": samples, **more}


def check(folder, rows, *changes, **options):
    """4 frames of 16x16 pixels are asked for, and one group a step."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    data = {"train": str(folder / "rows.jsonl"), "held_out": None}
    train = {"global_batch_groups": 1, "micro_batch_groups": 1}
    config = write_config(folder / "config.yaml", folder / "out", "toy", data=data, train=train)
    return run_check(str(config), list(changes), json_file=folder / "found.json", **options)


def test_good_groups_are_counted_with_their_samples(folder, capsys):
    findings = check(folder, [group("a", 0, 1, 2), group("b", 3), group("c", 4, 5)], "objective={name: sft}")
    assert findings.problems == [] and findings.exit_code == 0 and len(findings.clips) == 6
    said = capsys.readouterr().out
    assert "3 sound groups of 1 to 3 samples in train" in said and "3 groups of 8 frames a second" in said


def test_everything_is_said_of_the_sample_that_it_is_about(folder):
    rows = [
        group("gone", 0, "gone"),
        group("page", 0, 1, "page"),
        group("wide", 0, 1, "wide"),
        group("fast", 0, "fast"),
        group("short", 0, "short"),
        group("said", 0, 1, num_frames=5),
        group("hash", 0, 1),
        group("same", 0, "same"),
        group("five", 0, "five", 1),
    ]
    rows[6]["samples"][1]["sha256"] = "0" * 64
    findings = check(folder, rows)
    found = {problem.pair: problem for problem in findings.problems}
    assert [problem.pair for problem in findings.problems if problem.severity == "error"] == [
        row["id"] for row in rows[:7]
    ]
    said = {
        "gone": ("samples.clip", "sample 1 of group `gone` is 'clips/gone.mp4': no file"),
        "page": ("samples.clip", "sample 2 of group `page`, 'clips/page.mp4': not a video"),
        "wide": ("width", "group `wide`: width is 16 in .*0.mp4 and 32 in .*wide.mp4"),
        "fast": ("fps", "group `fast`: fps is 8 in .* and 16 in"),
        "short": ("samples.clip", "sample 1 of group `short`, .*holds 3 frames"),
        "said": ("num_frames", "group `said`: its row says num_frames 5 and .*0.mp4 has 6"),
        "hash": ("samples.sha256", "sample 1 of group `hash`: its SHA-256 is .*, not 0000"),
        "same": ("samples.clip", "sample 1 of group `same`, .*the same bytes as sample 0"),
        "five": ("samples", "group `five`: its clips give 5 to 6 frames: 5 from the start are common to all"),
    }
    for name, (key, text) in said.items():
        assert found[name].key == key and re.search(text, found[name].what), found[name].what
        assert found[name].allowed and found[name].suggestion


OBJECTIVES = {  # objective: what each sample says, key that is lacking
    "dpo": ({}, "samples.rank"),
    "video_dpo": ({"rank": 0}, ""),
    "dense_dpo": ({"rank": 0}, "samples"),
    "local_dpo": ({"rank": 0}, "samples"),
    "adpo": ({"rank": 0}, "samples"),
    "kto": ({"rank": 0}, "samples.label"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_an_objective_reads_of_samples(folder, name):
    says, key = OBJECTIVES[name]
    rows = [group("a", 0, 1), group("b", 2, 3)]
    for sample in rows[1]["samples"]:
        del sample["rank"]
        sample.update(says)
    findings = check(folder, rows, f"objective={{name: {name}}}")
    errors = [problem for problem in findings.problems if problem.severity == "error"]
    if name == "video_dpo":
        assert [problem.key for problem in errors] == ["gap_frequency"]  # of the whole row
    else:
        [problem] = errors
        assert problem.key == key and f"objective `{name}`" in problem.what
        assert (problem.line, "1 of 2 groups" in problem.what) == {"dpo": (2, True)}.get(name, (1, False))


def test_scores_that_rules_read_are_those_of_best_and_worst(folder):
    rows = [group("a", 0, 1, 2), group("b", 3, 4)]
    for row in rows:
        for sample in row["samples"]:
            sample["scores"] = {"total": 1.0}
    del rows[0]["samples"][1]["scores"]  # between the two
    rule = "data.select=[{by: margin, score: total}]"
    assert [problem.key for problem in check(folder, rows, rule).problems] == []
    del rows[1]["samples"][1]["scores"]
    [problem] = check(folder, rows, rule).problems
    assert (problem.key, problem.line) == ("scores", 2)
    assert problem.allowed == "scores.total, in every sample"


def test_captions_that_are_too_long_are_said_of_their_sample(folder):
    rows = [group("a", 0, 1)]
    rows[0]["samples"][1]["caption"] = "one two three four five six seven eight nine"
    [problem] = check(folder, rows).problems
    assert problem.key == "samples.caption" and "the caption of sample 1 of group `a`" in problem.what


def test_a_group_is_mended_as_a_pair_is(folder):
    """Clips of several sizes and rates are made alike, what a row says of them is corrected, bad rows are left out."""
    rows = [
        group("good", 0, 1, 2),
        group("odd", 0, "wide", "fast", 3),
        group("said", 4, 5, num_frames=5),
        group("page", 0, "page"),
        group("some", 0, 1),
    ]
    rows[1]["samples"][1]["sha256"] = sha256_of(folder / "clips/wide.mp4")
    del rows[4]["samples"][1]["rank"]
    findings = check(folder, rows, fix=str(folder / "new.jsonl"))
    assert findings.exit_code == 0
    mended = findings.mended
    assert [*mended.reencoded] == ["odd"] and [*mended.corrected] == ["said"]
    assert mended.dropped["page"].startswith("sample 1: not a video") and "some" in mended.dropped
    found, problems = scan_manifest(folder / "new.jsonl")
    assert problems == [] and [row.values["id"] for row in found] == ["good", "odd", "said"]
    good, odd, said = found
    assert good.values == rows[0] and said.values == {**rows[2], "num_frames": 6}
    infos = [verify_video(odd.clips[side]) for side in odd.sides]
    assert {(info.width, info.height, info.fps, info.num_frames) for info in infos} == {(16, 16, 8.0, 6)}
    assert [sample["rank"] for sample in odd.values["samples"]] == [0, 1, 2, 3]
    assert (
        odd.values["samples"][1]["sha256"]
        == sha256_of(Path(odd.clips["sample1"]))
        != rows[1]["samples"][1]["sha256"]
    )
    again = check(folder, [row.values for row in found])
    assert again.problems == []
    run_pgdpo("prepare", folder / "config.yaml")
    assert json.loads((folder / "found.json").read_text())["errors"] == 0


def test_rows_of_the_other_kind_are_left_out_by_fix(folder):
    pair = {"id": "p", "prompt": "x", "chosen": "clips/0.mp4", "rejected": "clips/1.mp4"}
    findings = check(folder, [group("a", 0, 1), pair], fix=str(folder / "new.jsonl"))
    assert "`p` is a pair" in findings.mended.dropped["p"] and findings.mended.kept == 1


def test_the_page_shows_samples_side_by_side_in_the_order_of_their_ranks(folder):
    rows = [group("a", 0, 1, 2, weight=3.0)]
    for sample, rank, score in zip(rows[0]["samples"], (2, 0, 1), (0.25, 0.75, 0.5), strict=True):
        sample.update(rank=rank, score=score, source="wan")
    check(folder, rows, page=folder / "check.html")
    page = (folder / "check.html").read_text()
    names = re.findall(r'<span class="side">([^<]*) <small>([^<]*)</small>', page)
    assert names == [
        ("sample 1", "rank 0 · score 0.75"),
        ("sample 2", "rank 1 · score 0.5"),
        ("sample 0", "rank 2 · score 0.25"),
    ]
    assert page.count("<video") == 6 and "1 groups, as shot" in page and "clips/2.mp4" in page
    assert "Above: the whole clip" in page and "source" in page


def test_held_out_clips_of_groups_that_are_trained_on(folder):
    held = [group("h", 2, 3)]
    (folder / "held.jsonl").write_text("".join(json.dumps(each) + "\n" for each in held))
    findings = check(folder, [group("a", 0, 1, 2)], f"data.held_out={folder / 'held.jsonl'}")
    [problem] = [one for one in findings.problems if one.key == "data.held_out"]
    assert "clip" in problem.what and "of a held-out group stands in data.train too (1 of 1)" in problem.what


def test_modifiers_of_pairs_are_refused_before_anything_is_encoded(folder):
    rows = [group("a", 0, 1), group("b", 2, 3)]
    findings = check(folder, rows, "objective={name: dpo, beta: 100, safeguard: {}}")
    [problem] = findings.problems
    assert problem.key == "objective" and "`safeguard` looks at the two samples of a pair" in problem.what
