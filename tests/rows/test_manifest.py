"""Manifests: the native row, JSONL and Parquet, paths and URLs, ties, what a row may name."""

import json

import pytest

from pgdpo.files.locations import clip_location
from pgdpo.files.tables import read_records, writer
from pgdpo.messages.errors import InputError
from pgdpo.rows.manifest import scan_manifest
from pgdpo.rows.schema import TIE
from tests.worlds import read_manifest

pytestmark = pytest.mark.quick

FULL = {
    "id": "a",
    "prompt": "a dog, «läuft»",
    "chosen": "clips/a.mp4",
    "rejected": "clips/b.mp4",
    "preference": 0.75,
    "weight": 2.0,
    "dimensions": {"VQ": 1.0, "MQ": 0.5},
    "segments": [{"start": 0, "end": 1, "preference": 1}, {"start": 1, "end": 2, "preference": 0.5}],
    "mask": "clips/m.png",
    "chosen_is_real": True,
    "caption_rejected": "a cat",
    "scores": {"chosen": {"total": 0.9}, "rejected": {"total": 0.1}},
    "fps": 16,
    "num_frames": 33,
    "width": 64,
    "height": 32,
    "sha256_chosen": "0" * 64,
    "sha256_rejected": "f" * 64,
    "source": "ours",
    "licence": "CC0-1.0",
    "source_fields": {"model": "m1", "votes": [1, None, "x"]},
    "anything": {"else": [1, 2.5, {"x": None}]},
}


def write(folder, *rows, name="rows.jsonl"):
    """A manifest beside empty files that stand for its clips."""
    (folder / "clips").mkdir(exist_ok=True)
    for clip in ("a.mp4", "b.mp4", "m.png"):
        (folder / "clips" / clip).touch()
    with writer(folder / name) as add:
        for row in rows:
            add(row)
    return folder / name


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_every_native_key_comes_back_and_feeds_the_columns(tmp_path, name):
    plain = {"id": "b", "prompt": "", "chosen": "clips/b.mp4", "rejected": "clips/a.mp4"}
    rows, problems = scan_manifest(write(tmp_path, FULL, plain, name=name))
    assert problems == []
    present = {key: value for key, value in rows[1].values.items() if value is not None}
    assert (rows[0].values, present) == (FULL, plain)

    first, second = read_manifest(tmp_path / name)
    assert first.clips["chosen"] == tmp_path / "clips" / "a.mp4"
    assert first.extra["probability"] == 0.75 and first.extra["segment_labels"] == [1, 0]
    assert second.extra == {"probability": 1.0}  # all rows have the column, or none
    assert "source_fields" not in first.extra


def test_parquet_keeps_columns_of_one_type_as_such(tmp_path):
    import pyarrow.parquet as parquet

    path = write(tmp_path, FULL, {**FULL, "id": "b", "anything": 3}, name="rows.parquet")
    kinds = {field.name: str(field.type) for field in parquet.read_schema(path)}
    assert kinds["prompt"] == "string" and kinds["fps"] == "int64" and kinds["chosen_is_real"] == "bool"
    assert [record.values["anything"] for record in read_records(path)] == [FULL["anything"], 3]


@pytest.mark.parametrize("form", ["file://{}", "memory://{}"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_manifests_and_clips_behind_urls(tmp_path, monkeypatch, form, name):
    import fsspec

    monkeypatch.setenv("PGDPO_CACHE", str(tmp_path / "cache"))
    url = form.format(tmp_path / "remote" / name)
    row = {key: value for key, value in FULL.items() if key != "mask"}
    for clip in ("a.mp4", "b.mp4"):
        with fsspec.open(form.format(tmp_path / "remote" / "clips" / clip), "wb", auto_mkdir=True) as stream:
            stream.write(clip.encode())
    with writer(url) as add:
        add(row)
    [read] = read_manifest(url)
    assert read.clips["chosen"].read_bytes() == b"a.mp4" and read.clips["rejected"].read_bytes() == b"b.mp4"
    assert [record.values for record in read_records(url)] == [row]


def test_a_clip_that_cannot_be_fetched_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PGDPO_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path, {**FULL, "chosen": "memory://gone/a.mp4"})
    with pytest.raises(InputError, match="memory://gone/a.mp4: cannot be fetched"):
        read_manifest(path)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_ties_are_left_out_only_where_asked(tmp_path):
    tie = {**FULL, "id": "tie", "preference": 0.5}
    path, said = write(tmp_path, FULL, tie), []
    assert [row.extra.get("preference") == TIE for row in read_manifest(path)] == [False, True]
    assert [row.id for row in read_manifest(path, ties="drop", say=said.append)] == ["a"]
    assert "1 of 2 rows are ties" in said[0]
    with pytest.raises(InputError, match="all 1 rows are ties.*data.ties"):
        read_manifest(write(tmp_path, tie, name="ties.jsonl"), ties="drop")


def test_all_problems_are_reported_and_the_good_rows_kept(tmp_path):
    path = write(tmp_path, FULL, {**FULL, "id": "b", "preference": 2, "fps": 0}, {**FULL, "weight": "x"})
    with path.open("a") as stream:
        stream.write('{"id": "c", "id": "d"}\nnot json\n[1]\n')
    rows, problems = scan_manifest(path)
    assert [row.values["id"] for row in rows] == ["a"]
    found = [(problem.line, problem.key) for problem in problems]
    assert found == [(2, "preference"), (2, "fps"), (3, "weight"), (3, "id"), (4, "id"), (5, ""), (6, "")]
    assert all(problem.allowed and problem.suggestion for problem in problems)
    with pytest.raises(InputError) as refused:
        read_manifest(path)
    assert str(refused.value).count("\n") == 6
    assert f"{path}:2: `preference` is 2; allowed: a number from 0 to 1; write 1" in str(refused.value)


@pytest.mark.parametrize(
    ("clip", "problem"),
    [
        ("../secret.mp4", "leaves the manifest's folder"),
        ("clips/../../secret.mp4", "leaves the manifest's folder"),
        ("/etc/passwd", "leaves the manifest's folder"),
        ("file:///etc/passwd", "leaves the manifest's folder"),
        ("pipe:1", "`pipe:` is no scheme"),
        ("concat:a|b", "`concat:` is no scheme"),
        ("ssh://host/clip.mp4", "`ssh:` is no scheme"),
        ("zip://a.mp4::https://host/x.zip", "`zip:` is no scheme"),
        ("simplecache::https://host/x.mp4", "`simplecache:` is no scheme"),
        ("a\0b.mp4", "control character"),
    ],
)
def test_what_a_row_may_not_name(tmp_path, clip, problem):
    with pytest.raises(ValueError, match=problem):
        clip_location(clip, str(tmp_path))


def test_a_media_root_opens_one_more_folder(tmp_path):
    folder, media = tmp_path / "manifests", tmp_path / "media"
    assert clip_location("../media/a.mp4", str(folder), media) == str(media / "a.mp4")
    assert clip_location(str(media / "a.mp4"), str(folder), media) == str(media / "a.mp4")
    with pytest.raises(ValueError, match="leaves"):
        clip_location("../media-private/a.mp4", str(folder), media)
    with pytest.raises(ValueError, match="leaves"):
        clip_location("../a.mp4", "s3://bucket/rows")


def test_a_failed_write_leaves_nothing(tmp_path):
    for name in ("rows.jsonl", "rows.parquet"):
        with pytest.raises(ValueError), writer(tmp_path / name) as add:
            add({"a": 1})
            add({"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_jsonl_with_other_bytes_names_the_line(tmp_path):
    path = write(tmp_path, FULL)
    with path.open("ab") as stream:
        stream.write('{"prompt": "Käse"}\n'.encode("latin-1"))
    [problem] = scan_manifest(path)[1]
    assert problem.line == 2 and "not UTF-8 (byte 0xe4 at column 14)" in problem.what
    assert json.loads(json.dumps(problem.as_json()))["line"] == 2
