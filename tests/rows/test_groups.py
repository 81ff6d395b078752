"""Rows of groups: what samples may hold, what is said of those that may not, and one kind of row a manifest."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgdpo.files.tables import writer
from pgdpo.messages.errors import InputError
from pgdpo.rows.manifest import scan_manifest
from pgdpo.rows.ranked import ends
from pgdpo.rows.schema import captions_of, counted, flaws, samples_of, sides_of
from tests.worlds import read_manifest

pytestmark = pytest.mark.quick

FULL = {
    "id": "g1",
    "prompt": "a dog, «läuft»",
    "samples": [
        {"clip": "clips/a.mp4", "score": 0.8, "rank": 0, "label": 1, "advantage": 0.4, "scores": {"motion": 3.0},
         "caption": "a cat", "source": "wan", "sha256": "0" * 64, "source_fields": {"uid": 7}},
        {"clip": "clips/b.mp4", "score": -1, "rank": 1, "label": -1, "advantage": -0.4, "anything": [1]},
        {"clip": "clips/c.mp4", "score": 0.0, "rank": 1, "label": 0, "advantage": 0},
    ],
    "weight": 2.0,
    "timestep_weight": 0.5,
    "mask": "clips/m.png",
    "fps": 16,
    "source": "ours",
    "licence": "CC0-1.0",
}  # fmt: skip
PAIR = {"id": "p", "prompt": "x", "chosen": "clips/a.mp4", "rejected": "clips/b.mp4"}


def write(folder, *rows, name="rows.jsonl"):
    (folder / "clips").mkdir(exist_ok=True)
    for clip in ("a.mp4", "b.mp4", "c.mp4", "m.png"):
        (folder / "clips" / clip).touch()
    with writer(folder / name) as add:
        for row in rows:
            add(row)
    return folder / name


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_every_key_of_a_sample_comes_back(tmp_path, name):
    alone = {"id": "k1", "prompt": "", "samples": [{"clip": "clips/c.mp4", "label": -1}]}
    rows, problems = scan_manifest(write(tmp_path, FULL, alone, name=name))
    assert problems == [] and rows[0].values["samples"] == FULL["samples"]
    first, second = read_manifest(tmp_path / name)
    assert first.kind == "group" and [*first.clips] == [*sides_of(FULL)] == ["sample0", "sample1", "sample2"]
    assert first.clips["sample2"] == tmp_path / "clips/c.mp4" and first.mask == tmp_path / "clips/m.png"
    assert first.named["sample1"] == "clips/b.mp4"
    said = [
        {k: v for k, v in one.items() if k not in ("clip", "sha256", "source_fields")}
        for one in FULL["samples"]
    ]
    assert first.extra["samples"] == samples_of(FULL) == said
    assert first.extra["sha256_sample0"] == "0" * 64 and "sha256_sample1" not in first.extra
    assert first.extra["weight"] == 2.0 and "probability" not in first.extra
    assert captions_of(first.extra) == {"sample0": "a cat"}
    assert second.extra == {"samples": [{"label": -1}]}


def changed(**changes):
    """FULL with changes to the row, or to sample 1 by `sample1_<key>`; None takes a key out."""
    row = copy.deepcopy(FULL)
    for key, value in changes.items():
        place, key = (row["samples"][1], key[8:]) if key.startswith("sample1_") else (row, key)
        place[key] = value
        if value is None:
            del place[key]
    return row


WRONG = {  # row: key, parts of what is said, whether it is an error
    "no list": (changed(samples={"clip": "a"}), "samples", ["is {'clip': 'a'}", "a list of one or more"], True),
    "empty": (changed(samples=[]), "samples", ["is []", "a list of one or more"], True),
    "of texts": (changed(samples=["a.mp4"]), "samples", ["is ['a.mp4']", "a list of one or more"], True),
    "no clip": (changed(sample1_clip=None), "samples.clip", ["sample 1: key `clip` is missing", "a URL"], True),
    "clips": (changed(sample1_clip=None, sample1_clips="b.mp4"), "samples.clip", ["rename `clips`"], True),
    "score": (changed(sample1_score=float("nan")), "samples.score", ["sample 1: `score` is nan", "a number"], True),
    "rank": (changed(sample1_rank=-1), "samples.rank", ["sample 1: `rank` is -1", "≥ 0, 0 the best"], True),
    "half a rank": (changed(sample1_rank=0.5), "samples.rank", ["`rank` is 0.5"], True),
    "label": (changed(sample1_label=2), "samples.label", ["`label` is 2", "1 (good), -1 (bad) or 0"], True),
    "advantage": (changed(sample1_advantage="x"), "samples.advantage", ["`advantage` is 'x'"], True),
    "scores": (changed(sample1_scores={"a": None}), "samples.scores", ["{name: number}"], True),
    "caption": (changed(sample1_caption=" "), "samples.caption", ["`caption` is ' '"], True),
    "hash": (changed(sample1_sha256="abc"), "samples.sha256", ["64 digits"], True),
    "some ranks": (changed(sample1_rank=None), "samples.rank", ["missing in sample 1", "or in none"], True),
    "of a pair": (
        changed(chosen="a.mp4", preference=7, rank=[0, 1], segments=3),
        "samples",
        ["`chosen`, `preference`, `segments`, `rank` of a pair", "a group (`samples`) or a pair"],
        True,
    ),
    "no prompt": (changed(prompt=None), "prompt", ["needs id, prompt, samples"], True),
    "a broken text": (changed(sample1_caption="nul \0"), "samples", ["a NUL character"], True),
    "twice": (changed(sample1_clip="clips/a.mp4"), "samples.clip", ["sample 1 is 'clips/a.mp4'", "same file as sample 0"], False),
    "misspelt": (changed(sample1_caption_="x"), "samples.caption_", ["did you mean `caption`?"], False),
    "row misspelt": (changed(wieght=2, weight=None), "wieght", ["did you mean `weight`?"], False),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_a_group_may_not_hold_is_said_once(name):
    row, key, parts, is_error = WRONG[name]
    [flaw] = flaws(row)
    assert flaw.key == key and (flaw.severity == "error") == is_error
    text = f"{flaw.what}; {flaw.allowed}; {flaw.suggestion}"
    assert all(part in text for part in parts), text
    assert flaw.allowed and flaw.suggestion


def test_a_good_group_has_no_flaw():
    assert list(flaws(FULL)) == []
    assert list(flaws({**FULL, "chosen": None, "samples": [{"clip": "a", "rank": None}]})) == []  # Parquet's


def test_a_sample_that_is_not_there_is_named(tmp_path):
    path = write(
        tmp_path, changed(sample1_clip="clips/gone.mp4"), changed(id="g2", sample1_clip="/etc/passwd")
    )
    rows, problems = scan_manifest(path)
    assert rows == [] and [(one.line, one.key) for one in problems] == [
        (1, "samples.clip"),
        (2, "samples.clip"),
    ]
    assert "sample 1 of group `g1` is 'clips/gone.mp4': no file at" in str(problems[0])
    assert "sample 1 of group `g2` is '/etc/passwd': " in str(problems[1])


@pytest.mark.parametrize("groups_first", [True, False])
def test_a_manifest_holds_pairs_or_groups(tmp_path, groups_first):
    pairs, groups = [PAIR, {**PAIR, "id": "q"}], [FULL, {**FULL, "id": "g2"}, {**FULL, "id": "g3"}]
    order = groups + pairs if groups_first else pairs + groups
    rows, [problem] = scan_manifest(write(tmp_path, *order))
    assert [row.kind for row in rows] == (["group"] * 3 if groups_first else ["pair"] * 2)
    said = "`p` is a pair, the first of 2, and the rows before are groups" if groups_first else (
        "`g1` is a group, the first of 3, and the rows before are pairs"
    )  # fmt: skip
    assert said in problem.what and problem.line == len(rows) + 1
    assert "two samples, with `rank` 0 and 1" in problem.suggestion
    with pytest.raises(InputError, match="pairs alone, or groups alone"):
        read_manifest(tmp_path / "rows.jsonl")


def test_several_manifests_hold_one_kind_too(tmp_path):
    from pgdpo.config import DataConfig
    from pgdpo.data.sources import read_rows

    paths = [write(tmp_path, row, name=f"{name}.jsonl") for name, row in (("a", FULL), ("b", PAIR))]
    with pytest.raises(InputError, match=r"b.jsonl:1: `p` is a pair, the first of 1, .* groups"):
        read_rows(DataConfig(train=[{"manifest": str(path)} for path in paths]), "train")


RATED = st.sampled_from(["rank", "score", "advantage", "label"])


@given(RATED, st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_best_and_worst_are_extremes_and_the_order_of_what_is_said(key, values):
    """Whatever stands beside them: a sample that is better by any other than the first of the ratings doesn't count."""
    samples = [{"clip": "x", key: value} for value in values]
    best, worst = (int(side.removeprefix("sample")) for side in ends({"samples": samples}))
    extremes = min(values), max(values)
    assert (values[best], values[worst]) == (extremes if key == "rank" else extremes[::-1])
    assert values.index(values[best]) == best  # the earlier of equal ones
    if key == "score":
        ranked = [{**sample, "rank": place} for place, sample in enumerate(samples)]
        assert ends({"samples": ranked}) == ("sample0", f"sample{len(values) - 1}")


def test_words_for_numbers_of_rows():
    groups = [{"samples": [{}] * size} for size in (2, 6, 3)]
    assert counted(groups) == "3 groups of 2 to 6 samples"
    assert counted(groups[:1]) == "1 groups of 2 samples"
    assert counted([{"samples": [{}]}]) == "1 groups of 1 sample"
    assert counted([PAIR] * 4) == "4 pairs" and counted([]) == "0 pairs"


def test_the_labels_of_groups_are_in_a_runs_identity():
    """And those of pairs give the hash that they gave before there were groups."""
    from types import SimpleNamespace

    from pgdpo.checkpoints.identity import rows_hash

    def digest(*rows):
        return rows_hash(SimpleNamespace(rows=list(rows), shares=None))

    row = {"id": "g", "prompt": "x", "samples": [{"score": 1.0}, {"score": 2.0}]}
    assert digest(row) != digest(json.loads(json.dumps(row).replace("2.0", "3.0")))
    assert digest({"id": "p", "prompt": "x", "weight": 2.0}) == "e72b31f86c7b"
