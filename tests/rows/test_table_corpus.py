"""Forty tables, as pandas, polars, LibreOffice and published sets write them: each read with what is told from its
columns alone, or refused with the command line to type. `python -m tests.rows.test_table_corpus` writes the figures
to benchmarks/results/tables.json."""

import json
import re
import shlex
from pathlib import Path

import pytest

from pgdpo.files.tables import read_records
from pgdpo.messages.errors import InputError
from pgdpo.rows.importers import FORMATS, Options, import_data
from tests.rows.write_tables import FOLDER, PROMPTS
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.quick

ALL = [("1a", "1b", 1), ("2b", "2a", 1), ("3a", "3b", 0.5), ("4a", "4b", 1)]  # chosen, rejected, preference
DECIDED = [ALL[0], ALL[1], ALL[3]]
UNJUDGED = "the third was judged by nobody"  # a tie of weight 0
VOTES = [("1a", "1b", 0.75), ("2b", "2a", 0.75), ("3a", "3b", 0.5), ("4a", "4b", 1)]
RATED = [("1a", "1b", 1), ("2b", "2a", 1), ("3a", "3b", 0.5), ("4a", "4b", 1)]

# file -> (the prompts' language, the pairs in it)
READ = {
    "pandas_index.csv": ("en", ALL),
    "pandas_decimal_comma.csv": ("de", ALL),
    "pandas_utf16.tsv": ("fr", ALL),
    "pandas_quoted_bom.csv": ("ja", ALL),
    "pandas_cp1252.csv": ("de", ALL),
    "pandas_bars.csv": ("en", ALL),
    "pandas_unjudged.csv": ("en", ALL),
    "pandas.parquet": ("en", ALL),
    "pandas_columns.json": ("en", ALL),
    "pandas_records.json": ("zh", ALL),
    "pandas_lines.json": ("en", DECIDED),
    "polars.csv": ("en", DECIDED),
    "polars_votes.csv": ("en", VOTES),
    "polars.ndjson": ("en", ALL),
    "polars.parquet": ("en", ALL),
    "polars.json": ("en", ALL),
    "polars_tabs.txt": ("ru", ALL),
    "polars_ratings.parquet": ("en", RATED),
    "libreoffice_en_us.csv": ("en", ALL),
    "libreoffice_de_de.csv": ("de", ALL),
    "libreoffice_fr_fr.csv": ("fr", ALL),
    "libreoffice_unicode_text.txt": ("pl", ALL),
    "libreoffice_pl_pl.csv": ("pl", ALL),
    "libreoffice_ru_ru.csv": ("ru", ALL),
    "libreoffice_el_gr.csv": ("el", ALL),
    "libreoffice_tr_tr.csv": ("tr", ALL),
    "libreoffice_ja_jp.csv": ("ja", ALL),
    "videoalign_overall.csv": ("en", ALL),
    "rapidata.parquet": ("en", VOTES),
    "pickapic_urls.parquet": ("en", ALL),
    "genai_arena.jsonl": ("en", ALL),
    "arena.jsonl": ("en", ALL),
    "form.csv": ("en", ALL),
    "label_studio.json": ("en", ALL),
    "camel_case.jsonl": ("en", ALL),
    "excel_windows.csv": ("de", ALL),
    "ratings_decimal_comma.csv": ("en", RATED),
    "winning_and_losing.jsonl": ("en", DECIDED),
}
# file -> (why it isn't clear, the mapping that is proposed, that with the user's knowledge, the pairs by it)
REFUSED = {
    "videoalign.csv": (
        "which clip is better may be said by `VQ`, `MQ`, `TA`",
        "--prompt prompt --a path_A --b path_B --winner VQ",
        ALL,
    ),
    "zero_and_one.csv": (
        "`label` holds 0, 1, and nothing says which clip that is",
        "--prompt prompt --a video_1 --b video_2 --winner label --a-wins 0 --b-wins 1",
        [*ALL[:2], ("3a", "3b", 1), ALL[3]],
    ),
}


def pairs_in(manifest: Path) -> list[tuple[str, str, float]]:
    rows = [record.values for record in read_records(manifest)]
    return [(Path(row["chosen"]).stem, Path(row["rejected"]).stem, row["preference"]) for row in rows]


def test_there_are_forty_tables():
    files = {path.name for path in FOLDER.iterdir()} - {"versions.json", ".gitattributes"}
    assert files == READ.keys() | REFUSED.keys() and len(files) == 40


@pytest.mark.parametrize("name", READ)
def test_a_table_is_read_as_its_columns_tell(name, tmp_path, capsys):
    language, pairs = READ[name]
    run_pgdpo("import", "table", FOLDER / name, tmp_path / "rows.jsonl")
    assert pairs_in(tmp_path / "rows.jsonl") == pairs
    rows = [record.values for record in read_records(tmp_path / "rows.jsonl")]
    prompts = PROMPTS[language] if len(pairs) == 4 else [*PROMPTS[language][:2], PROMPTS[language][3]]
    assert [row["prompt"] for row in rows] == prompts
    assert [row.get("weight") for row in rows].count(0) == (name in ("pandas_unjudged.csv", "pandas.parquet"))

    said = (
        capsys.readouterr().out
    )  # what was taken, three rows of it, and the command line that says the same
    assert all(repr(prompt)[1:8] in said for prompt in PROMPTS[language][:1])
    [command] = re.findall(r"the same, typed: pgdpo (.*)", said)
    typed = shlex.split(command)
    assert typed[:2] == ["import", "table"] and "--prompt" in typed
    typed[3] = str(tmp_path / "again.jsonl")
    run_pgdpo(*typed)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "rows.jsonl").read_bytes()


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_is_not_clear_is_refused_with_the_mapping_to_type(name, tmp_path):
    why, mapping, pairs = REFUSED[name]
    out = tmp_path / "rows.jsonl"
    with pytest.raises(InputError) as refused:
        run_pgdpo("import", "table", FOLDER / name, out)
    assert why in str(refused.value) and not out.exists()
    command = str(refused.value).splitlines()[-1].split("pgdpo ", 1)[1]
    assert command == f"import table {FOLDER / name} {out} {mapping}"
    run_pgdpo(*shlex.split(command))
    assert pairs_in(out) == pairs


def main() -> None:
    """benchmarks/results/tables.json: how many are read as their columns tell, and what the others say."""
    import tempfile

    read, wrong, refused = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(READ | REFUSED):
            out = Path(folder, "rows.jsonl")
            try:
                import_data(FORMATS["table"], str(FOLDER / name), str(out), Options(command=(name, "OUT")))
            except InputError as error:
                said = str(error).splitlines()
                refused[name] = {
                    "why": said[0].split(": ", 1)[1],
                    "to type": said[-1][said[-1].index("pgdpo ") :],
                }
                continue
            (read if name in READ and pairs_in(out) == READ[name][1] else wrong).append(name)
    figures = {
        "what": "tables imported by `pgdpo import table` with no mapping; read: with the pairs that were written down",
        "tables": len(READ | REFUSED),
        "read": len(read),
        "wrong": wrong,
        "refused": refused,
        "written by": json.loads((FOLDER / "versions.json").read_text()),
    }
    results = Path(__file__).parents[2] / "benchmarks" / "results" / "tables.json"
    results.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
