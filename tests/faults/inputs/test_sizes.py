"""Fault 22, sizes and counts: a file without end is refused after a bounded part of it, by name and limit."""

import json
import os

import numpy as np
import pytest

from pgdpo.checkpoints.published import find_damage, read_state
from pgdpo.config.read import load_config
from pgdpo.files import bounded
from pgdpo.files.locations import open_binary
from pgdpo.files.tables import read_records
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem
from pgdpo.rows.importers import FORMATS, import_data
from pgdpo.rows.manifest import scan_manifest
from pgdpo.video import read_video, write_video
from pgdpo.video.picture import read_image
from tests.faults.inputs.peaks import peaks
from tests.faults.inputs.test_clips import picture
from tests.worlds import run_pgdpo

LONG = 10 << 30  # bytes of files that are nothing but a hole: they take no room on the disk
ROW = {"id": "1", "prompt": "x", "chosen": "a.mp4", "rejected": "b.mp4"}


def endless(path, start=b""):
    """`start`, and zeros up to 10 GB."""
    path.write_bytes(start)
    os.truncate(path, LONG)
    return path


class Counted:
    """A stream that counts what is read of it."""

    def __init__(self, stream):
        self._stream, self.bytes = stream, 0

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def readinto(self, buffer):
        count = self._stream.readinto(buffer)
        self.bytes += count
        return count

    def read(self, size=-1):
        content = self._stream.read(size)
        self.bytes += len(content)
        return content

    read1 = read

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stream.close()


@pytest.fixture
def opened(monkeypatch):
    """Every file that a table's reader opened, as Counted."""
    streams = []

    def counted(location):
        streams.append(Counted(open_binary(location)))
        return streams[-1]

    monkeypatch.setattr("pgdpo.files.tables.open_binary", counted)
    return streams


@pytest.mark.parametrize("where", ["{}", "file://{}"], ids=["path", "URL"])
@pytest.mark.parametrize(
    ("name", "start", "line"),
    [
        ("rows.jsonl", json.dumps(ROW).encode() + b"\n{", 2),
        ("rows.csv", b"id,prompt,chosen,rejected\n1,x,a,b\n2,", 3),
        ("rows.csv", b'id,prompt,chosen,rejected\n"' + b'\n","x' * (1 << 18), 2),
    ],
    ids=["JSONL", "CSV", "CSV, one record of many lines"],
)
def test_a_record_without_end_is_refused_after_a_bounded_part(
    tmp_path, opened, monkeypatch, name, start, line, where, tally
):
    monkeypatch.setattr(bounded, "LARGEST_LINE", 1 << 20)
    path = endless(tmp_path / name, start)
    *_, problem = read_records(where.format(path))
    assert isinstance(problem, Problem) and problem.line == line
    assert str(problem).startswith(
        f"{path}:{line}: the record that begins here is longer than 1,048,576 bytes"
    )
    assert "allowed: records of up to 1,048,576 bytes" in str(problem)
    assert sum(stream.bytes for stream in opened) < 3 * bounded.LARGEST_LINE
    tally(22, 1, 1)


def test_an_endless_manifest_is_refused_by_the_command_and_by_importers(tmp_path, opened, config_file, tally):
    rows = endless(tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match=r"rows.jsonl:1: the record that begins here is longer than"):
        run_pgdpo("prepare", config_file, f"output_dir={tmp_path / 'fresh'}", f"data.train={rows}")
    with pytest.raises(InputError, match=r"rows.jsonl:1: the record that begins here is longer than"):
        import_data(FORMATS["trl"], str(rows), str(tmp_path / "out.jsonl"))
    assert sum(stream.bytes for stream in opened) < 5 * bounded.LARGEST_LINE
    assert not (tmp_path / "out.jsonl").exists()
    tally(22, 2, 2)


def test_one_json_value_has_a_largest_size(tmp_path, opened, monkeypatch, tally):
    monkeypatch.setattr(bounded, "LARGEST_JSON", 1 << 20)
    path = endless(tmp_path / "rows.json", b"[")
    assert "holds more than 1,048,576 bytes" in str(scan_manifest(path)[1][0])
    assert sum(stream.bytes for stream in opened) < 2 << 20
    endless(tmp_path / "metadata.json", b"[")
    with pytest.raises(InputError, match=r"metadata.json: cannot be read \(holds more than 1,048,576 bytes"):
        import_data(FORMATS["videodpo"], str(tmp_path), str(tmp_path / "out.jsonl"))
    for side in ("win", "lose"):
        (tmp_path / "folders" / side).mkdir(parents=True)
        (tmp_path / "folders" / side / "a.mp4").touch()
    endless(tmp_path / "folders/win/a.txt")
    with pytest.raises(InputError, match=r"a.txt: .*holds more than 16,777,216 bytes"):
        import_data(FORMATS["folders"], str(tmp_path / "folders"), str(tmp_path / "out.jsonl"))
    tally(22, 3, 3)


def test_a_file_holds_so_many_records_and_bad_rows(tmp_path, monkeypatch, tally):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({**ROW, "id": str(n)}) + "\n" for n in range(9)))
    monkeypatch.setattr(bounded, "MOST_RECORDS", 7)
    *records, problem = read_records(path)
    assert len(records) == 7 and str(problem).startswith(
        f"{path}: holds more than 7 records; allowed: up to 7"
    )
    monkeypatch.setattr("pgdpo.rows.manifest.MOST_BAD_ROWS", 3)  # no row's clips are there
    rows, problems = scan_manifest(path)
    assert not rows and [problem.line for problem in problems] == [1, 1, 2, 2, 3, 3, None]
    assert "3 rows are bad: the rest isn't read" in str(problems[-1])
    tally(22, 2, 2)


def test_json_that_is_nested_too_deep_is_named(tmp_path, tally):
    deep = "[" * 200_000
    path = tmp_path / "rows.jsonl"
    path.write_text(deep + "\n" + json.dumps(ROW).replace('"x"', "1" * 5000) + "\n")
    assert [(problem.line, "not JSON" in problem.what) for problem in read_records(path)] == [
        (1, True),
        (2, True),
    ]
    (tmp_path / "rows.json").write_text(deep)
    assert "nested too deep" in str(scan_manifest(tmp_path / "rows.json")[1][0])
    (tmp_path / "labels.csv").write_text(f"prompt,chosen,rejected,segments\nx,a.mp4,b.mp4,{deep}\n")
    with pytest.raises(InputError, match=r"labels.csv:2: `segments` is"):
        import_data(FORMATS["densedpo"], str(tmp_path / "labels.csv"), str(tmp_path / "out.jsonl"))
    tally(22, 4, 4)


def test_a_table_of_few_bytes_that_unpacks_to_many(tmp_path, tally):
    """8 GB of prompts in some thousand bytes: one value, and references to it."""
    import pyarrow
    import pyarrow.parquet as parquet

    count = 2000
    prompts = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array(["x" * (4 << 20)])
    )
    table = pyarrow.table({"id": [str(n) for n in range(count)], "prompt": prompts})
    path = tmp_path / "rows.parquet"
    parquet.write_table(
        table, path, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False
    )
    assert path.stat().st_size < 10_000
    [found] = peaks("read_table", [path])
    assert "unpack to more than 1,073,741,824 bytes" in found["text"]
    assert found["peak_bytes"] < 500 << 20
    tally(22, 1, 1, peak_mb=round(found["peak_bytes"] / 1e6))


def test_a_picture_beyond_all_sizes_is_refused_by_its_header(tmp_path, tally):
    (tmp_path / "huge.png").write_bytes(picture(100_000, 100))
    with pytest.raises(InputError, match="huge.png: .*100000x100 pixels; up to 8192"):
        read_image(tmp_path / "huge.png", (64, 64))
    tally(22, 1, 1)


def test_brackets_in_names_are_text_and_no_markup(capsys, tally):
    """rich takes `[/x]` for the end of a style that was never begun, and leaves `[seg]` out of a path."""
    said = "data/[seg]/a.mp4 of pair `[/x]` :skull:"
    say(said)
    say(f": {said}", first=f"skipped {said}")
    assert capsys.readouterr().out.splitlines() == [said, f"skipped {said}: {said}"]
    tally(22, 2, 2)


def test_a_clip_without_end_is_not_taken_into_memory(tmp_path, monkeypatch, tally):
    write_video(tmp_path / "long.mp4", np.zeros((40, 32, 32, 3), np.uint8), 8)
    monkeypatch.setattr("pgdpo.video.read.MAX_DECODED", 10 * 32 * 32 * 3)
    with pytest.raises(InputError, match="long.mp4: 40 frames of 32x32 pixels take over 30,720 bytes"):
        read_video(tmp_path / "long.mp4")
    assert len(read_video(tmp_path / "long.mp4", num_frames=10)) == 10
    tally(22, 1, 1)


def test_files_of_a_checkpoint_or_configuration_have_a_largest_size(tmp_path, monkeypatch, tally):
    monkeypatch.setattr(bounded, "LARGEST_JSON", 1 << 20)
    endless(tmp_path / "manifest.json")
    assert "manifest.json cannot be read (ValueError: holds more than" in find_damage(tmp_path)
    (tmp_path / "manifest.json").write_text("[" * 200_000)
    assert "nested too deep" in find_damage(tmp_path)
    endless(tmp_path / "state.json")
    with pytest.raises(InputError, match=r"state.json: .*holds more than"):
        read_state(tmp_path)
    tally(21, 3, 3)
    with pytest.raises(InputError, match=r"config.yaml: .*holds more than 4,194,304 bytes"):
        load_config(endless(tmp_path / "config.yaml"))
    tally(22, 1, 1)
