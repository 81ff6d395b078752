"""`pgdpo import --groups`: one row a prompt with every clip once, ranked as the source rates or compares them."""

import itertools
import json
from collections import defaultdict
from fractions import Fraction

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.files.tables import read_records
from pgdpo.messages.errors import InputError
from pgdpo.rows.importers import FORMATS, Options, import_data
from pgdpo.rows.importers.formats import pickapic
from pgdpo.rows.importers.groups import ranks_by
from pgdpo.rows.manifest import scan_manifest
from tests.rows.importer_samples import JPG, save_csv, save_jsonl, touch
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.quick

GROUPS = Options(groups=True)
CLIPS = [f"{letter}.mp4" for letter in "abcde"]


def read(form, source, options=GROUPS):
    """(rows, Reading) of a format's reader alone; a Problem is a failure."""
    reading = FORMATS[form].read(str(source), options)
    return [found.row for found in reading.found], reading


def written(form, source, out, options=GROUPS, **more):
    """(rows as they stand in the manifest, Summary)."""
    summary = import_data(FORMATS[form], str(source), str(out), options, **more)
    return [record.values for record in read_records(out)], summary


def names(row) -> list[str]:
    return [sample["clip"].content for sample in row["samples"]]


RATED = st.lists(st.tuples(st.sampled_from("pqr"), st.sampled_from(CLIPS), st.integers(0, 3)), min_size=1)


@settings(deadline=None, max_examples=100)
@given(RATED, st.sampled_from(["best_of_n", "table"]))
def test_every_clip_stands_once_and_ranks_are_those_of_the_scores(tmp_path_factory, rated, form):
    source = tmp_path_factory.mktemp("rated") / "t.csv"
    save_csv(source, [dict(zip(("prompt", "video", "score"), each, strict=True)) for each in rated])
    given_to = defaultdict(lambda: defaultdict(list))
    for prompt, clip, score in rated:
        given_to[prompt][clip].append(score)
    means = {
        prompt: {clip: Fraction(sum(scores), len(scores)) for clip, scores in clips.items()}
        for prompt, clips in given_to.items()
        if len(clips) > 1
    }
    rows, reading = read(form, source)
    alone = len(given_to) - len(means)
    assert reading.left_over == (
        [f"{alone} prompts have one clip: a list of one ranks nothing"] if alone else []
    )
    assert reading.total == len(rows) and [row["prompt"] for row in rows] == list(means)
    for row in rows:
        mean, samples = means[row["prompt"]], row["samples"]
        assert sorted(names(row)) == sorted(mean)
        for one, other in itertools.product(samples, samples):
            first, second = mean[one["clip"].content], mean[other["clip"].content]
            assert (one["rank"] < other["rank"]) == (first > second)
            assert (one["score"] < other["score"]) == (first < second)
        ranks = [sample["rank"] for sample in samples]
        assert ranks == sorted(ranks) and set(ranks) == set(range(max(ranks) + 1))


def rated_source(folder):
    """Two prompts of several clips, one of a single clip; a clip rated twice, a tie, a model in all of `q` alone."""
    folder.mkdir(exist_ok=True)
    touch(folder, *CLIPS)
    records = [
        {"prompt": "p", "video": "a.mp4", "score": 0.1, "scores": {"motion": 3.0}, "model": "wan", "seed": 1},
        {"prompt": "p", "video": "b.mp4", "score": 0.9, "scores": {"motion": 5.0}, "seed": 2},
        {"prompt": "p", "video": "c.mp4", "score": 0.4, "scores": {"motion": 1.0}, "model": "ltx", "seed": 3},
        {"prompt": "p", "video": "c.mp4", "score": 0.6, "scores": {"motion": 3.0}, "model": "ltx", "seed": 4},
        {"prompt": "q", "video": "d.mp4", "score": 0.5, "model": "wan"},
        {"prompt": "q", "video": "a.mp4", "score": 0.5, "model": "ltx"},
        {"prompt": "r", "video": "e.mp4", "score": 1.0},
    ]
    save_jsonl(folder / "scores.jsonl", records)
    return folder / "scores.jsonl", records


def test_a_manifest_of_groups(tmp_path):
    source, records = rated_source(tmp_path / "in")
    rows, summary = written("best_of_n", source, tmp_path / "out.jsonl", copy=True)
    assert [row["prompt"] for row in rows] == ["p", "q"]
    p, q = (row["samples"] for row in rows)
    assert [(tmp_path / each["clip"]).read_bytes() for each in p] == [b"b.mp4", b"c.mp4", b"a.mp4"]
    assert [each["rank"] for each in p] == [0, 1, 2] and [each["score"] for each in p] == [0.9, 0.5, 0.1]
    assert [each["scores"]["motion"] for each in p] == [5, 2, 3]
    assert not any("source" in each for each in p) and [each["source"] for each in q] == ["wan", "ltx"]
    assert [each["rank"] for each in q] == [0, 0] and all(len(each["sha256"]) == 64 for each in p + q)
    assert p[0]["source_fields"] == records[1] and q[1]["source_fields"] == records[5]
    assert p[1]["source_fields"] == {"ratings": records[2:4]}
    assert (summary.rows, summary.sizes, summary.ties, summary.media) == (2, {2, 3}, 1, 4)
    assert summary.left_over == ["1 prompts have one clip: a list of one ranks nothing"]
    assert scan_manifest(tmp_path / "out.jsonl")[1] == []
    assert {"group", "chosen", "rejected"}.isdisjoint(rows[0])


def test_the_same_source_gives_the_same_bytes(tmp_path):
    (tmp_path / "pick").mkdir()
    for form, source in (
        ("best_of_n", rated_source(tmp_path / "in")[0]),
        ("pickapic", pick(tmp_path / "pick", [("a", "b", 1), ("b", "c", 0.5)])),
    ):
        for out in ("one.jsonl", "two.jsonl"):
            written(form, source, tmp_path / form / out)
        one, two = ((tmp_path / form / name).read_text() for name in ("one.jsonl", "two.jsonl"))
        assert one == two.replace("two.media", "one.media")


def test_digests_stand_where_the_bytes_of_all_were_seen(tmp_path):
    source, _ = rated_source(tmp_path / "in")
    rows, _ = written("best_of_n", source, tmp_path / "out.jsonl")
    assert not any("sha256" in sample for row in rows for sample in row["samples"])


# --- comparisons

NAMES = "abcdefg"
COMPARED = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from([0, 0.5, 1])))


def reached(start, edges) -> set:
    """All names that edges lead to from `start`, itself too."""
    seen, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [after for before, after in edges if before == name]
    return seen


@settings(deadline=None, max_examples=300)
@given(COMPARED)
def test_ranks_never_speak_against_a_comparison_that_no_other_contradicts(comparisons):
    votes = defaultdict(float)
    for first, second, share in comparisons:
        if first != second:
            votes[first, second] += share - 0.5
            votes[second, first] -= share - 0.5
    beats = [pair for pair, lead in votes.items() if lead >= 0]  # or ties
    linked = {name: reached(name, list(votes)) for pair in votes for name in pair}
    parts = ranks_by(comparisons)
    assert sorted(map(sorted, parts)) == sorted(map(list, {tuple(sorted(part)) for part in linked.values()}))
    for ranks in parts:
        assert set(ranks.values()) == set(range(max(ranks.values()) + 1))
        for better, worse in beats:
            if better in ranks:
                in_a_circle = better in reached(worse, beats)
                assert (ranks[better] == ranks[worse]) if in_a_circle else (ranks[better] < ranks[worse])
        for name, rank in ranks.items():  # none stands lower than it must
            above = {better for better, worse in beats if worse in reached(name, beats) & _back(name, beats)}
            assert rank == max((ranks[each] + 1 for each in above if ranks[each] < rank), default=0)


def _back(name, beats) -> set:
    return reached(name, [(after, before) for before, after in beats])


@settings(deadline=None, max_examples=100)
@given(st.permutations(range(6)), st.data())
def test_who_stays_until_beaten_gets_the_order_that_was_meant(truth, data):
    """Pick-a-Pic's way: the winner stays, the next picture challenges it. Wins alone would rank an early winner of many
    rounds above the one that beat it."""
    champion, comparisons = 0, []
    for challenger in range(1, 6):
        wins = truth[challenger] < truth[champion]
        shown = (
            (champion, challenger, 1.0 - wins) if data.draw(st.booleans()) else (challenger, champion, wins)
        )
        comparisons.append(shown)
        champion = challenger if wins else champion
    [ranks] = ranks_by(data.draw(st.permutations(comparisons)))
    assert [name for name, rank in ranks.items() if rank == 0] == [champion] == [truth.index(0)]
    for first, second, share in comparisons:
        assert (ranks[first] < ranks[second]) == (truth[first] < truth[second]) == (share == 1)


def pick(folder, comparisons, **columns):
    """Pick-a-Pic rows: (uid, uid, the first's share or None where nobody judged); a picture's bytes hold its uid."""
    records = [
        {
            "caption": "a house",
            "image_0_uid": first,
            "image_1_uid": second,
            "image_0_url": f"https://example.com/{first}.png",
            "jpg_0": JPG[0] + first.encode(),
            "jpg_1": JPG[0] + second.encode(),
            "label_0": 0.5 if share is None else float(share),
            "label_1": 0.5 if share is None else 1.0 - share,
            "has_label": share is not None,
            "model_0": "m",
            "model_1": "m",
            "ranking_id": number,
            "user_id": 7,
            **{key: values[number] for key, values in columns.items()},
        }
        for number, (first, second, share) in enumerate(comparisons)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(records), folder / "train.parquet")
    return folder / "train.parquet"


def uids(row) -> list[tuple[str, int]]:
    return [
        (sample["clip"].content.removeprefix(JPG[0]).decode(), sample["rank"]) for sample in row["samples"]
    ]


@pytest.mark.parametrize("in_memory", [1, 1 << 28])
def test_pickapic_pictures_of_one_caption_and_user_are_a_group(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(pickapic, "IN_MEMORY", in_memory)  # 1: they wait in a file
    source = pick(
        tmp_path,
        [("a", "b", 0), ("a", "b", 1), ("b", "c", 1), ("b", "d", 0.5), ("u", "v", 1), ("a", "e", None)],
        user_id=[7, 8, 7, 7, 7, 7],
        caption=["a house"] * 4 + ["a tree", "a house"],
    )
    rows, reading = read("pickapic", source)
    assert [uids(row) for row in rows] == [
        [("b", 0), ("d", 0), ("a", 1), ("c", 1)],
        [("a", 0), ("b", 1)],  # another user's taste
        [("u", 0), ("v", 1)],
    ]
    assert [row["prompt"] for row in rows] == ["a house", "a house", "a tree"]
    assert all(row["num_frames"] == 1 and "weight" not in row for row in rows)
    assert reading.left_over == ["1 pictures were judged by nobody, and stand alone for their caption"]


def test_pickapic_groups_keep_every_field(tmp_path):
    source = pick(tmp_path, [("a", "b", 0), ("b", "c", 1), ("n", "o", None)])
    rows, summary = written("pickapic", source, tmp_path / "out.jsonl")
    judged, unjudged = rows
    for sample, uid in zip(judged["samples"], "bac", strict=True):
        assert (tmp_path / sample["clip"]).read_bytes() == JPG[0] + uid.encode()
        assert sample["source"] == "m" and sample["source_fields"]["image_uid"] == uid and sample["sha256"]
    records = [record.values for record in read_records(source)]
    compared = judged["source_fields"]["comparisons"] + unjudged["source_fields"]["comparisons"]
    pictures = ("jpg_0", "jpg_1")
    assert compared == [{k: v for k, v in record.items() if k not in pictures} for record in records]
    assert unjudged["weight"] == 0 and [sample["rank"] for sample in unjudged["samples"]] == [0, 0]
    assert (summary.rows, summary.weightless, summary.ties, summary.media) == (2, 1, 1, 5)


# --- single ratings

WORDS = [
    ("up", "down"),
    ("1", "0"),
    ("1", "-1"),
    ("good", "bad"),
    ("True", "False"),
    ("Thumbs up", "thumbs-down"),
]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(CLIPS), st.sampled_from([1, -1, 0])), min_size=1, max_size=12),
    st.sampled_from(WORDS),
    st.sampled_from(["label", "Feedback", "thumbs", "is_good"]),
)
def test_labels_make_groups_of_one(tmp_path_factory, rated, words, column):
    source = tmp_path_factory.mktemp("labels") / "t.csv"
    rated = [("a.mp4", 1), ("b.mp4", -1), *rated]
    word = {1: words[0], -1: words[1], 0: ""}
    save_csv(
        source,
        [
            {"prompt": "p", "video": clip, column: word[label], "id": n}
            for n, (clip, label) in enumerate(rated)
        ],
    )
    rows, reading = read("table", source)
    assert [(names(row), row["samples"][0]["label"]) for row in rows] == [
        ([clip], label) for clip, label in rated
    ]
    assert [row.get("weight") for row in rows] == [0 if label == 0 else None for _, label in rated]
    assert [row["id"] for row in rows] == [str(n) for n in range(len(rated))] and reading.left_over == []


def test_a_score_and_a_label_together(tmp_path):
    """A list keeps its clips' labels, and a clip alone for its prompt stays for its label."""
    source = tmp_path / "t.csv"
    rated = [
        ("p", "a.mp4", 1, "bad"),
        ("p", "b.mp4", 2, "good"),
        ("q", "c.mp4", 3, "good"),
        ("p", "a.mp4", 2, "bad"),
    ]
    save_csv(source, [dict(zip(("prompt", "video", "score", "label"), each, strict=True)) for each in rated])
    rows, _ = read("table", source, Options(groups=True, columns={"score": "score", "label": "label"}))
    assert [(names(row), [each["label"] for each in row["samples"]]) for row in rows] == [
        (["b.mp4", "a.mp4"], [1, -1]),
        (["c.mp4"], [1]),
    ]
    rows, reading = read("table", source)
    assert len(rows) == 1 and "label" not in rows[0]["samples"][0] and len(reading.left_over) == 1


LABELLED = "prompt,video,{}\np,a.mp4,{}\nq,b.mp4,{}\n"
REFUSED = {
    "a format of pairs": ("trl", "{}", {}, "--groups is for formats that hold lists; trl reads .*: leave it out"),
    "pairs beside groups": ("best_of_n", "{}", {"pairs": "all"}, "--groups and --pairs all exclude each other"),
    "a table of pairs": ("table", "prompt,video_a,video_b,winner\np,a.mp4,b.mp4,A\nq,c.mp4,d.mp4,B\n", {},
                         r"t.csv: holds pairs; --groups is for a row a clip, .*: leave it out"),
    "labels without groups": ("table", LABELLED.format("label", "up", "down"), {"groups": False},
                              r"t.csv: `label` calls each clip good or bad, which makes no pairs: give --groups"),
    "a scale for a label": ("table", LABELLED.format("stars", 1, 3), {"columns": {"label": "stars"}},
                            r"t.csv: `stars` \('1', '3'\) must call each clip good or bad"),
    "good, bad and between": ("table", LABELLED.format("label", 0, -1), {"columns": {"label": "label"}},
                              r"`label` \('0', '-1'\) must call each clip good or bad"),
    "true of a bad clip": ("table", LABELLED.format("thumbs_down", True, False), {"columns": {"label": "thumbs_down"}},
                           r"`thumbs_down` \('True', 'False'\) must call each clip good or bad"),
    "true of a bad clip, not said": ("table", LABELLED.format("thumbs_down", True, False), {},
                                     "no two columns, and no column with scores or labels"),
    "good alone, which may be any number": ("table", LABELLED.format("label", 1, 1), {},
                                            "no two columns, and no column with scores or labels"),
    "two labels": ("table", "prompt,video,label,feedback\np,a.mp4,1,0\nq,b.mp4,0,1\n", {},
                   "the label may be `label`, `feedback`"),
    "one label": ("table", LABELLED.format("label", "up", "down") + "r,c.mp4,up\n" * 20 + "s,d.mp4,sideways\n", {},
                  r"t.csv:24: `label` is 'sideways'; allowed: 1 or 0 \(or -1\), .*; mend it"),
    "lists of one": ("best_of_n", "prompt,video,score\np,a.mp4,1\nq,b.mp4,2\n", {},
                     r"t.csv: no group in it \(2 prompts have one clip: a list of one ranks nothing\)"),
    "a clip beside a pair": ("table", LABELLED.format("label", 1, 0), {"columns": {"label": "label", "a": "video"}},
                             "--a and --label exclude each other"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name, tmp_path):
    form, text, options, message = REFUSED[name]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        written(
            form, tmp_path / "t.csv", tmp_path / "out" / "rows.jsonl", Options(**{"groups": True, **options})
        )
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_the_command_counts_groups(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    source, _ = rated_source(tmp_path / "in")
    run_pgdpo("import", "best_of_n", source, tmp_path / "rows.jsonl", "--groups")
    said = capsys.readouterr().out
    assert "groups of 2 to 3 samples" in said and "left over: 1 prompts have one clip" in said
    labels = tmp_path / "in" / "labels.csv"
    labels.write_text(LABELLED.format("label", "up", "down"))
    run_pgdpo("import", "table", labels, tmp_path / "labels.jsonl", "--groups")
    said = " ".join(capsys.readouterr().out.split())
    assert "groups of 1 sample" in said and "each clip is a group of one, good (label 1) or bad (-1)" in said
    [typed] = [line for line in said.split("the same, typed: ")[1:]]
    assert typed.startswith("pgdpo import table") and "--groups" in typed and "--label label" in typed
    assert json.loads((tmp_path / "labels.jsonl").read_text().splitlines()[1])["samples"][0]["label"] == -1
