"""Text tables of any country and program; rows that no file takes; many errors at once; a user's home folder."""

import csv
import io
import json

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.checking import run_check
from pgdpo.config.read import load_config
from pgdpo.files.tables import count_records, read_records
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem
from pgdpo.rows.importers import FORMATS, Options, import_data
from pgdpo.rows.manifest import scan_manifest
from tests.rows.write_tables import PROMPTS
from tests.worlds import read_manifest, run_pgdpo, write_config

pytestmark = pytest.mark.quick

CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=2, max_size=8),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_program_wrote_is_read(tmp_path_factory, rows, delimiter, encoding, quoting, end):
    """Python's own writer stands for the program: any text, delimiter, Unicode encoding and line end."""
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end)
    writer.writerows([("prompt", "video one", "note"), *rows])
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    if encoding == "utf-16-le" and not all(cell.isascii() for row in rows for cell in row):
        return  # without a mark and without ASCII it may be anything
    assert [tuple(record.values.values()) for record in read_records(path)] == rows


OF_COUNTRY = [("de", "cp1252"), ("fr", "cp1252"), ("pl", "cp1250"), ("ru", "cp1251"), ("el", "cp1253"),
              ("tr", "cp1254"), ("ja", "cp932"), ("zh", "gb18030")]  # fmt: skip


@pytest.mark.parametrize(("language", "encoding"), OF_COUNTRY)
def test_an_encoding_that_nothing_names_is_told_by_its_letters_and_said(tmp_path, capsys, language, encoding):
    path = tmp_path / "t.csv"
    path.write_text(
        "".join(f'{n};"{p}"\n' for n, p in enumerate(["prompt", *PROMPTS[language]])), encoding=encoding
    )
    assert [record.values["prompt"] for record in read_records(path)] == PROMPTS[language]
    said = capsys.readouterr().out
    assert said.count(f"{path}: it is not UTF-8, and read as {encoding}") == 1 and "save it as UTF-8" in said


def test_bytes_that_cannot_be_told_are_refused(tmp_path):
    good, bad = "für grüne Wälder, schöne Straßen\n" * 3, b"caf\xe9 \xff\n"
    for content, why in (
        (good.encode() + bad, "UTF-8 with other bytes among it"),
        (b"\x81\x8d\x8f\n", "neither UTF-8"),
    ):
        (tmp_path / "t.csv").write_bytes(b"id,prompt\n1," + content)
        with pytest.raises(ValueError, match=why):
            list(read_records(tmp_path / "t.csv"))
        with pytest.raises(InputError, match=f"t.csv: cannot be read \\({why}"):
            import_data(FORMATS["trl"], str(tmp_path / "t.csv"), str(tmp_path / "rows.jsonl"))


def test_a_server_that_sends_a_file_once(tmp_path, monkeypatch):
    class Once(io.BytesIO):
        def seek(self, place, whence=0):
            if place != self.tell():
                raise ValueError("Cannot seek streaming HTTP file")
            return place

    contents = {
        "t.csv": b"prompt;a\nx;1\n",
        "t.txt": b"prompt\ta\nx\t1\n",
        "t.json": b'[{"prompt": "x", "a": "1"}]',
    }
    for name, content in contents.items():
        monkeypatch.setattr("pgdpo.files.tables.open_binary", lambda location, content=content: Once(content))
        [record] = read_records(f"https://example.com/{name}")
        assert record.values == {"prompt": "x", "a": "1"}


def test_what_is_no_table_is_refused(tmp_path):
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match="t.xlsx: is no .parquet, .*; save it as CSV"):
        import_data(FORMATS["table"], str(tmp_path / "t.xlsx"), str(tmp_path / "rows.jsonl"))
    for content in (b"", b"prompt,video_1,video_2,winner\n", b"\xff\xfe"):
        (tmp_path / "t.csv").write_bytes(content)
        with pytest.raises(InputError, match="t.csv: holds no record; table reads a table with a prompt"):
            import_data(FORMATS["table"], str(tmp_path / "t.csv"), str(tmp_path / "rows.jsonl"))


EMPTY = "prompt,a,,\np,1,,\n,,,\nq,2,,\n\n,,,\n"
MARKED = "sep=|\nprompt|a\np|1\nq|2"
INDEX = ",prompt,a\n0,p,1\n1,q,2\n"


@pytest.mark.parametrize(
    ("content", "names"),
    [(EMPTY, ["prompt", "a"]), (INDEX, ["column 1", "prompt", "a"]), (MARKED, ["prompt", "a"])],
)
def test_empty_columns_and_rows_of_a_spreadsheet(tmp_path, content, names):
    (tmp_path / "t.csv").write_text(content)
    records = list(read_records(tmp_path / "t.csv"))
    assert [record.values["prompt"] for record in records] == ["p", "q"]
    assert [list(record.values) for record in records] == [names, names] and count_records(
        tmp_path / "t.csv"
    ) >= 2
    assert [record.line for record in records] == {EMPTY: [2, 4], INDEX: [2, 3], MARKED: [3, 4]}[content]


def test_what_would_lose_a_field_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,a,a\np,1,2\n")
    with pytest.raises(ValueError, match="column `a` stands twice in the header"):
        list(read_records(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("prompt;a\np;1;x\nq\nr;2\n")
    more, fewer, record = read_records(tmp_path / "t.csv")
    assert "more fields than the header" in more.what and "semicolons into quotes" in more.suggestion
    assert fewer.line == 3 and "fewer fields" in fewer.what and record.values == {"prompt": "r", "a": "2"}


HALVES = {
    "prompt": "bad \ud83d half",
    "id": "s\ud83d",
    "chosen": "a\ud83d.mp4",
    "source": "\udfff",
    "extra": {"x": ["\udead"]},
    "caption_rejected": "nul \0 x",
}


@pytest.mark.parametrize("key", HALVES)
def test_half_a_character_is_an_error_of_its_row(key, tmp_path):
    for clip in ("a.mp4", "b.mp4"):
        (tmp_path / clip).touch()
    good = {"id": "r", "prompt": "p", "chosen": "a.mp4", "rejected": "b.mp4"}
    rows = [good, {**good, "id": "s", key: HALVES[key]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, problems = scan_manifest(path)
    assert [(problem.line, problem.key) for problem in problems] == [(2, key)] and len(kept) == 1
    str(problems[0]).encode()  # can be printed
    with pytest.raises(InputError, match=rf"rows.jsonl:2: `{key}` holds (half a|a NUL) character"):
        read_manifest(path)
    with pytest.raises(
        InputError, match=rf"rows.jsonl:2: `({key}|source_fields)` holds (half a|a NUL) character"
    ):
        import_data(FORMATS["trl"], str(path), str(tmp_path / "out.parquet"))
    config = write_config(tmp_path / "c.yaml", tmp_path / "out", tmp_path)
    overrides = [f"data.train={path}", "data.held_out=null"]
    findings = run_check(str(config), overrides, json_file=tmp_path / "found.json")
    assert findings.exit_code == 2
    found = json.loads((tmp_path / "found.json").read_text())["problems"]
    assert (key, 2) in [(each["key"], each["line"]) for each in found]


def test_half_a_character_in_csv_and_parquet(tmp_path):
    raw = [b"fine", b"bad \xed\xa0\xbd half"]
    (tmp_path / "t.csv").write_bytes(b"id,prompt\n1,%s\n2,%s\n" % tuple(raw))
    first, second = read_records(tmp_path / "t.csv")
    assert (first.values["prompt"], second.values["prompt"]) == ("fine", "bad \ud83d half")
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, pyarrow.array(raw, pyarrow.binary()).buffers())
    parquet.write_table(pyarrow.table({"id": ["1", "2"], "prompt": text}), tmp_path / "t.parquet")
    first, second = read_records(tmp_path / "t.parquet")
    assert first.values == {"id": "1", "prompt": "fine"}
    assert isinstance(second, Problem) and second.row == 2 and second.key == "prompt"


def test_a_configuration_takes_no_half_character(tmp_path):
    config = write_config(tmp_path / "c.yaml", tmp_path / "out", tmp_path)
    with pytest.raises(InputError, match=r"`name` is 'x\\ud83d': it holds half a character or a NUL"):
        load_config(config, [r'name="x\ud83d"'])


@pytest.mark.parametrize("count", [20, 21, 5000])
def test_many_errors_are_grouped_and_all_of_them_listed(tmp_path, count):
    """Two kinds, a third of the rows each: counts are true, the first three of each are shown, a file has all."""
    lines = [f"p{n},{n}a.mp4,{n}b.mp4,{'AB'[n % 2]}" for n in range(count)]
    lines += [f"p{n},,{n}b.mp4,A" if n % 3 else f"p{n},a.mp4,b.mp4,C" for n in range(count)]
    (tmp_path / "t.csv").write_text("\n".join(["prompt,video_1,video_2,winner", *lines]))
    with pytest.raises(InputError) as refused:
        import_data(
            FORMATS["table"], str(tmp_path / "t.csv"), str(tmp_path / "out" / "rows.jsonl"), Options()
        )
    message, listed = str(refused.value).splitlines(), tmp_path / "out" / "rows.errors.txt"
    if count == 20:
        assert len(message) == 20 and not listed.exists() and not any("kinds" in line for line in message)
        return
    unknown = (count + 2) // 3
    assert message[0] == f"{count:,} errors of 2 kinds; all, one a line: {listed}"
    assert message[1].startswith(f"{count - unknown:,} of `video_1`: allowed: ") and message[5] == "  ..."
    assert message[6].startswith(f"{unknown:,} of `winner`: allowed: A, B;") and len(message) == 11
    assert message[7] == f"  {tmp_path / 't.csv'}:{count + 2}: `winner` is 'C'"
    all_of_them = listed.read_text().splitlines()
    assert len(all_of_them) == count and sum("`winner` is 'C'" in line for line in all_of_them) == unknown
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rows.errors.txt"]


def test_a_manifests_errors_are_listed_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": f"{n}", "prompt": "p", "chosen": "a.mp4", "rejected": f"{n}.mp4"} for n in range(40)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="80 errors of 2 kinds; all, one a line: rows.errors.txt"):
        read_manifest("data/rows.jsonl")
    assert len((tmp_path / "rows.errors.txt").read_text().splitlines()) == 80


def test_reading_stops_where_errors_have_no_end_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("pgdpo.rows.importers.run.MOST_BAD_ROWS", 30)
    (tmp_path / "t.jsonl").write_text('{"prompt": "p", "chosen": "a"}\n' * 50)
    with pytest.raises(
        InputError, match="31 errors of 2 kinds(?s:.*)t.jsonl: 30 errors: the rest isn't read"
    ):
        import_data(FORMATS["trl"], str(tmp_path / "t.jsonl"), str(tmp_path / "rows.jsonl"))


def test_a_home_folder_is_expanded_where_a_user_names_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for clip in ("a.mp4", "b.mp4"):
        (tmp_path / clip).touch()
    row = {"id": "r", "prompt": "p", "chosen": "a.mp4", "rejected": "b.mp4"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    run_pgdpo("import", "trl", "~/in.jsonl", "~/out.jsonl", "--name=~/x")
    assert len(scan_manifest("~/out.jsonl")[0]) == 1 and not (tmp_path / "~").exists()
    keys = {"output_dir": "runs", "data.train": "out.jsonl", "data.held_out": "in.jsonl", "data.media_root": "m",
            "data.prepared": "p", "model.path": "model", "model.adapter.init": "lora"}  # fmt: skip
    file = write_config(tmp_path / "c.yaml", "~/runs", "~/model")
    config = load_config(file, [f"{key}=~/{value}" for key, value in keys.items()])
    for key, value in keys.items():
        held = config
        for part in key.split("."):
            held = getattr(held, part)
        assert str(held) == f"{tmp_path}/{value}", key
    assert str(load_config(file).output_dir) == f"{tmp_path}/runs"  # as the file has it, too


def test_a_row_says_the_same_on_every_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.mp4").touch()
    row = {"id": "r", "prompt": "p", "chosen": "~/a.mp4", "rejected": "a.mp4"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    [problem] = scan_manifest(path)[1]
    assert problem.key == "chosen" and "begins with `~`" in problem.what
    with pytest.raises(InputError, match=r"rows.jsonl:1: '~/a.mp4' begins with `~`"):
        import_data(FORMATS["trl"], str(path), str(tmp_path / "out.jsonl"))
    (tmp_path / "~").mkdir()  # a folder that is really called so
    (tmp_path / "~" / "a.mp4").touch()
    assert scan_manifest(path)[1] == []
