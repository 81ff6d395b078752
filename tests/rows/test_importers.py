"""Every importer on a small sample of its real schema: no field is lost, ties stay ties, the better clip is chosen."""

import datetime

import pyarrow
import pyarrow.parquet as parquet
import pytest

from pgdpo.files.tables import read_records
from pgdpo.messages.errors import InputError
from pgdpo.rows.importers import FORMATS, Options, import_data
from pgdpo.rows.manifest import scan_manifest
from tests.rows.importer_samples import (
    JPG,
    SAMPLES,
    best_of_n,
    densedpo,
    folders,
    localdpo,
    pickapic,
    rapidata,
    save_jsonl,
    touch,
    trl,
    videoalign,
    videodpo,
)
from tests.worlds import read_manifest, run_pgdpo

pytestmark = pytest.mark.quick

# (preference, chosen, rejected) per row, paths by their last part
EXPECTED = {
    "videodpo": [(1, "win/000003", ""), (1, "lose/000007", ""), (0.5, "win/000007", "")],
    "videoalign": [
        (1, "1_A", "1_B"),
        (1, "1_B", "1_A"),
        (0.5, "1_A", "1_B"),
        (0.5, "1_A", "1_B"),
        (1, "1_A", "1_B"),
        (0.5, "1_A", "1_B"),
    ],
    "rapidata": [(0.8, "0-2.mp4", "0-1.mp4"), (0.5, "1-1.mp4", "1-2.mp4")],
    "densedpo": [
        (0.625, "a.mp4", "b.mp4"),
        (5 / 6, "b.mp4", "a.mp4"),
        (0.75, "b.mp4", ""),
        (0.5, "a.mp4", ""),
    ],
    "localdpo": [(1, "real/1.mp4", "made/1.mp4")],
    "folders": [(1, "win/a.mp4", "lose/a.mp4"), (1, "win/deep/b_c.mov", "lose/deep/b_c.mp4")],
    "trl": [
        (None, "a.mp4", "b.mp4"),
        (None, "a.mp4", "b.mp4"),
        (None, "a.mp4", "b.mp4"),
        (None, "a.mp4", "a.mp4"),
        (None, "b.mp4", "b.mp4"),
    ],
    "table": [(1, "1a", "1b"), (1, "1b", "1a"), (0.5, "1a", "1b"), (0.5, "1a", "1b")],
    "best_of_n": [(1, "a.mp4", "b.mp4"), (1, "c.mp4", "b.mp4"), (0.5, "a.mp4", "c.mp4")],
}
ALL = Options(pairs="all")


def imported(sample, tmp_path, out="rows.jsonl", options=ALL, **more):
    """(rows as JSON, the source's records, summary, folder of the manifest) of one sample."""
    folder = tmp_path / "source"
    folder.mkdir()
    source, records = sample(folder)
    out = tmp_path / "out" / out
    summary = import_data(FORMATS[sample.__name__], str(source), str(out), options, **more)
    return [record.values for record in read_records(out)], records, summary, out


def lost(record, row, form, folder):
    """Fields of a source's record that cannot be told from its row."""

    def same(value, kept):
        if isinstance(value, bytes):
            return (folder / kept).read_bytes() == value
        if isinstance(value, dict):
            return isinstance(kept, dict) and all(same(value[key], kept.get(key)) for key in value)
        return kept == (value.isoformat() if isinstance(value, datetime.datetime) else value)

    native = {column: row.get(key) for column, key in form.renames.items()}
    kept = {**native, **row["source_fields"]}
    return [column for column, value in record.items() if not same(value, kept.get(column))]


@pytest.mark.parametrize("out", ["rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.__name__)
def test_no_field_and_no_row_is_lost(sample, out, tmp_path):
    rows, records, summary, path = imported(sample, tmp_path, out)
    form = FORMATS[sample.__name__]
    assert summary.rows == len(rows) == len(records) and summary.dropped == 0 and summary.missing == []
    for record, row in zip(records, rows, strict=True):
        assert lost(record, row, form, path.parent) == []
    _, problems = scan_manifest(path, tmp_path / "source")
    assert [problem for problem in problems if problem.severity == "error"] == []
    for preference, row in zip(EXPECTED.get(form.name, []), rows, strict=False):
        share, chosen, rejected = preference
        assert row.get("preference") == (None if share is None else pytest.approx(share))
        assert chosen in row["chosen"].replace("videos", "") and rejected in row["rejected"]


def test_the_loss_of_a_field_would_be_seen(tmp_path):
    rows, records, _, path = imported(rapidata, tmp_path)
    del rows[0]["source_fields"]["model1"]
    rows[1]["source_fields"]["prompt_asset"]["path"] = "other"
    found = [lost(*pair, FORMATS["rapidata"], path.parent) for pair in zip(records, rows, strict=True)]
    assert found == [["model1"], ["prompt_asset"]]


def test_the_registry_and_the_help_name_the_same_formats(capsys):
    assert [sample.__name__ for sample in SAMPLES] == list(FORMATS)
    run_pgdpo("import", "--help")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ", ".join(FORMATS) + "." in shown
    with pytest.raises(InputError, match="FORMAT is 'videdpo'; did you mean `videodpo`"):
        run_pgdpo("import", "videdpo", "a", "b")


def test_pickapic_ties_pictures_and_unlabelled_rows(tmp_path):
    rows, _, summary, path = imported(pickapic, tmp_path)
    sides = [[(path.parent / row[side]).read_bytes() for side in ("chosen", "rejected")] for row in rows]
    assert sides == [[JPG[0], JPG[1]], [JPG[2], JPG[0]], [JPG[0], JPG[1]], [JPG[0], JPG[2]]]
    assert [row["preference"] for row in rows] == [1, 1, 0.5, 0.5]
    assert (summary.ties, summary.weightless, summary.media) == (2, 1, 3)
    assert rows[3]["weight"] == 0 and all(row["chosen"].endswith(".jpg") for row in rows)
    assert len({row["id"] for row in rows}) == 4 and rows[0]["num_frames"] == 1


def test_videoalign_has_one_row_per_dimension(tmp_path):
    rows, *_ = imported(videoalign, tmp_path)
    assert [row.get("dimension") for row in rows] == ["VQ", "MQ", "TA", "VQ", "TA", None]
    assert rows[0]["dimensions"] == {"VQ": 1, "MQ": 0, "TA": 0.5}  # of the chosen clip, A
    assert rows[1]["dimensions"] == {"VQ": 0, "MQ": 1, "TA": 0.5}  # B was better in motion
    assert rows[0]["fps"] == 8 and rows[0]["num_frames"] == 33 and rows[-1]["weight"] == 0


def test_one_dimension_of_many(tmp_path):
    rows, _, summary, _ = imported(videoalign, tmp_path, options=Options(dimension="MQ"))
    assert [row.get("dimension") for row in rows] == ["MQ", None] and summary.dropped == 1
    (tmp_path / "more").mkdir()
    rows, *_ = imported(rapidata, tmp_path / "more", options=Options(dimension="Coherence"))
    assert [row["preference"] for row in rows] == [0.6, 1.0]
    assert rows[0]["dimensions"] == {"Preference": 0.2, "Coherence": 0.6, "Alignment": 0.5}


def test_scores_reach_the_objectives_columns(tmp_path):
    rows, *_ = imported(videodpo, tmp_path)
    assert rows[1]["scores"] == {"chosen": {"score": 0.6}, "rejected": {"score": 0.3}}
    assert rows[1]["reward"] == [0.6, 0.3] and rows[1]["reward_margin"] == pytest.approx(0.3)


def test_segments_and_single_clips_reach_the_objectives_columns(tmp_path):
    _, _, _, path = imported(densedpo, tmp_path)
    rows = read_manifest(path, media_root=tmp_path)
    assert [row.extra["segment_labels"] for row in rows] == [[1, 0, -1, 1], [1, 1, 0], [1, 0], [1, -1]]
    (tmp_path / "more").mkdir()
    rows, *_ = imported(trl, tmp_path / "more")
    assert [row.get("label") for row in rows] == [None, None, None, [1, 0], [0, -1]]
    assert [row["id"] for row in rows[:2]] == ["x", "x#2"] and rows[1]["source_fields"]["id"] == "x"


@pytest.mark.parametrize(("pairs", "count"), [("all", 3), ("best-worst", 1), ("2", 2)])
def test_best_of_n(tmp_path, pairs, count):
    rows, _, summary, _ = imported(best_of_n, tmp_path, options=Options(pairs=pairs))
    assert len(rows) == count and rows[0]["rank"] == [0, 1] and rows[0]["reward_margin"] == pytest.approx(0.8)
    unused = {"all": 1, "best-worst": 2, "2": 1}[pairs]  # a prompt with one clip has no pair
    assert summary.left_over == [f"{unused} clips stand in no pair (--pairs {pairs})"]
    with pytest.raises(InputError, match="--pairs is 'some'; allowed: all, best-worst"):
        FORMATS["best_of_n"].read(str(tmp_path / "source"), Options(pairs="some"))


def test_clips_without_a_partner_are_named(tmp_path):
    _, _, summary, _ = imported(folders, tmp_path)
    assert summary.left_over == ["1 clips have no partner of the same name: win/alone.mp4"]


def test_copies_stand_beside_the_manifest(tmp_path):
    rows, _, summary, path = imported(densedpo, tmp_path, copy=True, name="us", licence="CC0-1.0")
    assert scan_manifest(path)[1] == []  # no media root needed
    assert (path.parent / rows[0]["chosen"]).read_bytes() == b"a.mp4" and summary.media == 2
    assert (
        len(rows[0]["sha256_chosen"]) == 64 and rows[0]["source"] == "us" and rows[0]["licence"] == "CC0-1.0"
    )


def test_a_manifest_behind_a_url(tmp_path):
    import fsspec

    source, _ = pickapic(tmp_path)
    import_data(FORMATS["pickapic"], str(source), "memory://import/rows.parquet")
    [first, *_] = [record.values for record in read_records("memory://import/rows.parquet")]
    with fsspec.open(f"memory://import/{first['chosen']}") as stream:
        assert stream.read() == JPG[0]
    with pytest.raises(InputError, match="the clip is local and the manifest is not: give --copy"):
        source, _ = localdpo(tmp_path)
        import_data(FORMATS["localdpo"], str(source), "memory://import/other.jsonl")


def test_sources_behind_urls(tmp_path):
    import fsspec

    for sample in (pickapic, videodpo, densedpo):
        folder = tmp_path / sample.__name__
        folder.mkdir()
        source, records = sample(folder)
        remote = f"memory://sources/{sample.__name__}"
        for file in (path for path in folder.rglob("*") if path.is_file()):
            with fsspec.open(f"{remote}/{file.relative_to(folder)}", "wb") as stream:
                stream.write(file.read_bytes())
        url = remote if source == folder else f"{remote}/{source.relative_to(folder)}"
        out = tmp_path / f"{sample.__name__}.jsonl"
        assert import_data(FORMATS[sample.__name__], url, str(out)).rows == len(records)
        rows = [record.values for record in read_records(out)]
        assert lost(records[0], rows[0], FORMATS[sample.__name__], tmp_path) == []
        beside = {
            pickapic: "pickapic.media/",
            videodpo: f"{remote}/winvideos/000003.mp4",
            densedpo: f"{remote}/a.mp4",
        }
        assert rows[0]["chosen"].startswith(beside[sample])


BAD = {
    "a label": ("videoalign", "data.csv", "path_A,path_B,prompt,VQ\na.mp4,b.mp4,p,C\n",
                r"data.csv:2: `VQ` is 'C'; allowed: A, B, same; mend"),
    "a missing column": ("videoalign", "data.csv", "path_A,prompt,VQ\na.mp4,p,A\n",
                         r"data.csv:2: `path_B` is missing; allowed: one of the columns path_B; here: path_A, prompt"),
    "a ragged line": ("videoalign", "data.csv", "path_A,path_B,prompt,VQ\na.mp4,b.mp4,p, q,A\n",
                      r"data.csv:2: the line has more fields than the header; allowed: 4 fields"),
    "segments": ("densedpo", "p.jsonl", '{"prompt": "p", "video1": "a", "video2": "b", "segments": ["A", "X"]}\n',
                 r"p.jsonl:1: `segments` is 'X'; allowed: a list of A \| B"),
    "no JSON": ("trl", "p.jsonl", '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt"\n',
                r"p.jsonl:2: not JSON"),
    "KTO's label": ("trl", "p.jsonl", '{"prompt": "p", "completion": "a", "label": "good"}\n',
                    r"p.jsonl:1: `label` is 'good'; allowed: true or false"),
    "a score": ("best_of_n", "p.jsonl", '{"prompt": "p", "video": "a", "score": "high"}\n',
                r"p.jsonl:1: `score` is 'high'; allowed: a finite number"),
    "a program for a clip": ("trl", "p.jsonl", '{"prompt": "p", "chosen": "ssh://x/a.mp4", "rejected": "b"}\n',
                             r"'ssh://x/a.mp4' is of no scheme"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_sources_are_named_and_nothing_is_left(name, tmp_path):
    form, file, content, message = BAD[name]
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=message):
        import_data(FORMATS[form], str(tmp_path / file), str(tmp_path / "out" / "rows.jsonl"))
    assert not list((tmp_path / "out").iterdir())


def test_a_late_failure_removes_the_media_too(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    source, _ = pickapic(folder)
    broken = folder / "data" / "train-00002.parquet"
    parquet.write_table(
        pyarrow.Table.from_pylist([{"caption": "x", "jpg_0": JPG[0], "label_0": 1.0}]), broken
    )
    with pytest.raises(InputError, match="train-00002.parquet, row 1: `jpg_1` or `image_1_url` is missing"):
        import_data(FORMATS["pickapic"], str(source), str(tmp_path / "out" / "rows.jsonl"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_the_command_says_what_it_did(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "source"
    folder.mkdir()
    source, _ = densedpo(folder)
    (folder / "b.mp4").unlink()
    run_pgdpo("import", "densedpo", source, tmp_path / "out" / "rows.jsonl")
    said = capsys.readouterr().out
    assert (
        "clips not found" in said and f"data.media_root={folder}" in said and "next: set data.train=" in said
    )


PICTURES = {"image": "first.png", "last_image": "last.png"}
RATED = [
    {"prompt": "p", "video": name, "score": score, **PICTURES} for name, score in (("a.mp4", 1), ("b.mp4", 0))
]
LABELLED = Options(groups=True, columns={"clip": "video", "label": "label"})
WITH_PICTURES = {
    "pairs": (
        "table",
        [{"prompt": "p", "video_1": "a.mp4", "video_2": "b.mp4", "winner": "A", **PICTURES}],
        ALL,
    ),
    "rated": ("table", RATED, ALL),
    "groups": ("table", RATED, Options(groups=True)),
    "best_of_n": ("best_of_n", RATED, ALL),
    "labels": (
        "table",
        [{"prompt": "p", "video": "a.mp4", "label": "good", **PICTURES}],
        LABELLED,
    ),
}


@pytest.mark.parametrize(("form", "records", "options"), WITH_PICTURES.values(), ids=WITH_PICTURES)
def test_pictures_are_carried_and_copied(form, records, options, tmp_path):
    """Columns `image` and `last_image`; `--copy` brings them along as it brings the clips."""
    touch(tmp_path, "a.mp4", "b.mp4", "first.png", "last.png")
    save_jsonl(tmp_path / "table.jsonl", records)
    for copy in (False, True):
        out = tmp_path / "out" / f"{copy}.jsonl"
        import_data(FORMATS[form], str(tmp_path / "table.jsonl"), str(out), options, copy=copy)
        [row] = [record.values for record in read_records(out)]
        for key, name in PICTURES.items():
            assert (out.parent / row[key]).read_bytes() == (tmp_path / name).read_bytes()
            assert row[key].startswith("True.media/" if copy else "../")


def test_clips_of_other_pictures_are_no_pair(tmp_path):
    """Of one prompt, but made from another picture: not what one was preferred to."""
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "first.png", "last.png")
    other = {"prompt": "p", "video": "c.mp4", "score": 5, "image": "last.png"}
    save_jsonl(tmp_path / "table.jsonl", [*RATED, other])
    import_data(FORMATS["best_of_n"], str(tmp_path / "table.jsonl"), str(tmp_path / "rows.jsonl"), ALL)
    [row] = [record.values for record in read_records(tmp_path / "rows.jsonl")]
    assert (row["chosen"], row["rejected"]) == ("a.mp4", "b.mp4")


def test_a_column_of_pictures_that_are_the_clips_is_none(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    records = [{"prompt": "p", "image": name, "score": score} for name, score in (("a.png", 1), ("b.png", 0))]
    save_jsonl(tmp_path / "table.jsonl", records)
    import_data(FORMATS["best_of_n"], str(tmp_path / "table.jsonl"), str(tmp_path / "rows.jsonl"), ALL)
    [row] = [record.values for record in read_records(tmp_path / "rows.jsonl")]
    assert row["chosen"] == "a.png" and "image" not in row
