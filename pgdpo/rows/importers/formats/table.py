"""A table as people have it: a row per pair with a winner, scores or chosen and rejected; or a row per rated clip,
of which scores make pairs and groups, and labels groups of one."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from pgdpo.files.tables import Record, dialect_of
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem, shown
from pgdpo.rows.importers.columns.sample import pictures_of
from pgdpo.rows.importers.columns.told import Columns, Unclear, find
from pgdpo.rows.importers.columns.verdicts import label_of
from pgdpo.rows.importers.format import (
    Format,
    Found,
    Options,
    Reading,
    first_of,
    is_missing,
    lacks,
    media_of,
    number,
    ordered,
    read_rows,
    readable,
    records_of,
    scored,
    tables_of,
    wrong,
)
from pgdpo.rows.importers.formats.best_of_n import Candidate, paired
from pgdpo.rows.importers.groups import grouped, maker_of
from pgdpo.rows.schema import TIE

SAMPLE = 1000  # records that the columns are told by
ROWS = 3  # of them shown


def read(source: str, options: Options) -> Reading:
    """Raises InputError, with the command line to type, where the columns or what they mean are not clear."""
    files = tables_of(source)
    sample = list(itertools.islice((item for item in records_of(files) if isinstance(item, Record)), SAMPLE))
    if not sample:
        raise InputError(f"{source}: holds no record; table reads {FORMAT.layout}")
    try:
        columns = find(sample, options.columns)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error
    except Unclear as unclear:
        raise InputError(_how_to_say(source, sample, unclear, options)) from unclear
    if options.groups and columns.clip is None:
        raise InputError(
            f"{source}: holds pairs; --groups is for a row a clip, with score or label: leave it out"
        )
    if columns.label is not None and not options.groups:
        raise InputError(
            f"{source}: `{columns.label}` calls each clip good or bad, which makes no pairs: give --groups, for "
            "objectives that read `label` (kto)"
        )
    _say_what_is_taken(files[0], sample, columns, options, source)
    if columns.clip is not None and columns.score is None:
        return read_rows(source, lambda record: _labelled(record, columns))
    if columns.clip is not None:
        return paired(source, options, lambda record: _candidate(record, columns))
    return read_rows(source, lambda record: _row(record, columns))


def _row(record: Record, columns: Columns) -> Iterator[Found | Problem]:
    prompt = first_of(record, columns.prompt)
    names = (columns.chosen, columns.rejected) if columns.a is None else (columns.a, columns.b)
    clips = [media_of(record, record.values.get(name)) for name in names]
    for name, value in zip((columns.prompt, *names), (prompt, *clips), strict=True):
        if value is None:
            yield lacks(record, name)
            return
    row = _compared(record, columns, clips)
    if isinstance(row, Problem):
        yield row
        return
    pictures = pictures_of(record, names)
    yield Found({**row, **pictures, **_id_of(record), "prompt": str(prompt[1])}, record.values)


def _id_of(record: Record) -> dict[str, str]:
    name = record.values.get("id")
    is_name = isinstance(name, (str, int)) and not isinstance(name, bool) and str(name).strip()
    return {"id": str(name)} if is_name else {}


def _compared(record: Record, columns: Columns, clips: Sequence[Any]) -> dict[str, Any] | Problem:
    """chosen, rejected and preference of a record, or what is wrong with it."""
    if columns.a is None:
        return ordered(*clips, 1.0)[0]
    if columns.score_a is not None:
        return _by_scores(record, columns, clips)
    value = record.values.get(columns.winner)
    if is_missing(value):
        return {**ordered(*clips, TIE)[0], "weight": 0.0}  # judged by nobody
    share = columns.verdicts.share_of(value, record)
    if share is None:
        known = ", ".join(sorted({str(each) for held in columns.values.values() for each in held}))
        allowed = f"{known or 'the name of a clip'}; empty where nobody judged"
        return wrong(
            record, columns.winner, value, allowed, "mend it, or say it: --a-wins, --b-wins, --tie VALUE"
        )
    return ordered(*clips, share)[0]


def _by_scores(record: Record, columns: Columns, clips: Sequence[Any]) -> dict[str, Any] | Problem:
    names = (columns.score_a, columns.score_b)
    values = [record.values.get(name) for name in names]
    if all(map(is_missing, values)):
        return {**ordered(*clips, TIE)[0], "weight": 0.0}
    scores = [number(value, columns.decimal_comma) for value in values]
    for name, value, score in zip(names, values, scores, strict=True):
        if score is None or (score < 0 and columns.counts_votes):
            return wrong(record, name, value, "a number, such as 0.75", "mend it, or leave both empty")
    first, second = scores
    if columns.counts_votes:
        votes = first + second
        row, _ = ordered(*clips, first / votes if votes else TIE)
        return row if votes else {**row, "weight": 0.0}
    row, swapped = ordered(*clips, TIE if first == second else float(first > second))
    better, worse = (second, first) if swapped else (first, second)
    return row | scored({"score": better}, {"score": worse}, "score")


def _labelled(record: Record, columns: Columns) -> Iterator[Found | Problem]:
    """A clip by itself: a group of one."""
    prompt, clip = first_of(record, columns.prompt), media_of(record, record.values.get(columns.clip))
    label = _label_of(record, columns)
    if prompt is None or clip is None:
        yield lacks(record, columns.prompt if prompt is None else columns.clip)
    elif isinstance(label, Problem):
        yield label
    else:
        own = {"source": maker_of(record), "source_fields": record.values}
        found = grouped(str(prompt[1]), [{"clip": clip, "label": label, **own}])
        found.row |= _id_of(record) | ({"weight": 0.0} if label == 0 else {})
        found.row |= pictures_of(record, (columns.clip,))
        yield found


def _label_of(record: Record, columns: Columns) -> int | Problem | None:
    """1 for a good clip, -1 for a bad one, 0 for one that was judged by nobody; None without such a column."""
    if columns.label is None:
        return None
    value = record.values.get(columns.label)
    label = 0 if is_missing(value) else label_of(value)
    if label is not None:
        return label
    allowed = "1 or 0 (or -1), true or false, up or down, good or bad; empty where nobody judged"
    return wrong(record, columns.label, value, allowed, "mend it, or leave the record out")


def _candidate(record: Record, columns: Columns) -> tuple[str, str, Candidate] | Problem:
    """(group, prompt, the clip with its score) of a rated clip."""
    prompt, clip = first_of(record, columns.prompt), media_of(record, record.values.get(columns.clip))
    if prompt is None or clip is None:
        return lacks(record, columns.prompt if prompt is None else columns.clip)
    score = number(record.values.get(columns.score), columns.decimal_comma)
    if score is None:
        value = record.values.get(columns.score)
        return wrong(
            record, columns.score, value, "a finite number", "score the clip, or leave the record out"
        )
    group = first_of(record, "group", "prompt_id", "group_id") or prompt
    label = _label_of(record, columns)
    if isinstance(label, Problem):
        return label
    pictures = pictures_of(record, (columns.clip,))
    candidate = Candidate(
        clip, score, {columns.score: score}, record.values, maker_of(record), label, pictures
    )
    return str(group[1]), str(prompt[1]), candidate


def _command(source: str, said: dict[str, Any], options: Options) -> str:
    """The command line that says the same in words."""
    words = ["pgdpo", "import", "table", *(options.command or (source, "OUT"))]
    for key, value in said.items():
        option = f"--{key.replace('_', '-')}"
        for each in [value] if isinstance(value, str) else value:
            words += [f"{option}={each}"] if str(each).startswith("-") else [option, str(each)]
    return shlex.join(words)


def _how_to_say(source: str, sample: Sequence[Record], unclear: Unclear, options: Options) -> str:
    said = {**unclear.guess, **{key: value for key, value in options.columns.items() if value}}
    is_open = "COLUMN" in said.values() or ["VALUE"] in said.values()
    names = [name for name in said.values() if isinstance(name, str)] if "COLUMN" not in said.values() else []
    rows = [
        "  " + ", ".join(f"{name}={_brief(record.values.get(name))}" for name in names or record.values)
        for record in sample[:ROWS]
    ]
    columns = ", ".join(dict.fromkeys(name for record in sample for name in record.values))
    return "\n".join(
        [
            f"{source}: {unclear}; its columns: {columns}",
            *rows,
            f"say {'what it is, in place of COLUMN and VALUE' if is_open else 'it, if it is so'}: "
            + _command(source, said, options),
        ]
    )


def _say_what_is_taken(
    file: str, sample: Sequence[Record], columns: Columns, options: Options, source: str
) -> None:
    with readable(file):
        dialect = dialect_of(file)
    roles = ", ".join(f"{key} `{name}`" for key, name in columns.named.items())
    say(f"{file}{f' ({dialect})' if dialect else ''} is read so: {roles}{_meaning(columns, options)}")
    if columns.clip is None:
        for record in sample[:ROWS]:
            say(f"  {record.problem('').where.removeprefix(file).lstrip(':, ')}: {_as_read(record, columns)}")
    else:
        for record in sample[:ROWS]:
            values = ", ".join(f"{name}={_brief(record.values.get(name))}" for name in columns.named.values())
            say(f"  {values}")
    say(f"the same, typed: {_command(source, columns.named | columns.values, options)}")


def _meaning(columns: Columns, options: Options) -> str:
    if columns.clip is not None and columns.score is None:
        return "; each clip is a group of one, good (label 1) or bad (-1)"
    if options.groups:
        return "; clips of one prompt are a group, ranked by their scores"
    if columns.clip is not None:
        return "; clips of one prompt are paired by their scores (--pairs)"
    if columns.chosen is not None:
        return "; the chosen clip is clearly the better one of every pair"
    if columns.counts_votes:
        return "; the share of the votes is the preference"
    if columns.score_a is not None:
        return "; the higher score is the better clip"
    meant = {"a_wins": columns.a, "b_wins": columns.b, "tie": "a tie"}
    held = [f"{', '.join(map(str, values))}: {meant[key]}" for key, values in columns.values.items()]
    if not {"a_wins", "b_wins"} & set(columns.values):
        held.insert(0, "the name of a clip, or of what made it")
    return f" ({'; '.join(held)})"


def _as_read(record: Record, columns: Columns) -> str:
    [item] = _row(record, columns)
    if isinstance(item, Problem):
        return item.what
    row = item.row
    sides = ", ".join(f"{side} {_brief(row[side].content)}" for side in ("chosen", "rejected"))
    unjudged = ", judged by nobody" if row.get("weight") == 0 else ""
    return f"{_brief(row['prompt'])}: {sides}, preference {row['preference']:g}{unjudged}"


def _brief(value: Any) -> str:
    return f"{len(value):,} bytes" if isinstance(value, bytes) else shown(value)


FORMAT = Format(
    "table",
    "Any table: its columns are told by their names and values, shown, and may be said (--prompt, --a, --b, ...).",
    "a table with a prompt and either two clips and which is better (a winner, or a score for each), chosen and "
    "rejected, or one clip and its score, or with --groups its label (good or bad)",
    read,
    {"id": "id"},
    lists=True,
)
