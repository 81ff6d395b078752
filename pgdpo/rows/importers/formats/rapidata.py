"""Rapidata and Datapoint: Parquet with two clips and the share of votes that each got, per dimension."""

from __future__ import annotations

from collections.abc import Iterator

from pgdpo.files.tables import Record
from pgdpo.messages.problems import Problem
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
    wrong,
)
from pgdpo.rows.schema import TIE

OVERALL = "Preference"  # the dimension that decides where it is there
VOTES = "weighted_results1_"


def read(source: str, options: Options) -> Reading:
    return read_rows(source, lambda record: _row(record, options.dimension))


def _row(record: Record, decisive: str | None) -> Iterator[Found | Problem]:
    clips = []
    for side in (1, 2):
        names = [f"{stem}{side}" for stem in ("video", "image", "file_name")]
        named = first_of(record, *names)
        media = media_of(record, named[1]) if named else None
        if media is None:
            yield lacks(record, *names)
            return
        clips.append(media)
    if not isinstance(record.values.get("prompt"), str):
        yield lacks(record, "prompt")
        return
    shares: dict[str, float] = {}
    for column in record.values:
        if column.startswith(VOTES):
            share = _share(record, column.removeprefix(VOTES))
            if isinstance(share, Problem):
                yield share
                return
            if share is not None:
                shares[column.removeprefix(VOTES)] = share
    if decisive is not None and decisive not in shares:
        yield wrong(
            record, "--dimension", decisive, ", ".join(shares) or "none is there", "name one of these"
        )
        return
    deciding = decisive or (OVERALL if OVERALL in shares else None)
    overall = shares[deciding] if deciding else sum(shares.values()) / len(shares) if shares else TIE
    row, swapped = ordered(*clips, overall)
    if shares:
        row["dimensions"] = {name: 1 - share if swapped else share for name, share in shares.items()}
    else:
        row["weight"] = 0.0  # nobody voted
    yield Found(row | {"prompt": record.values["prompt"]}, record.values)


def _share(record: Record, name: str) -> float | Problem | None:
    """The first clip's share of the votes of one dimension; None where nobody voted."""
    columns = [f"weighted_results{side}_{name}" for side in (1, 2)]
    values = [record.values.get(column) for column in columns]
    if all(map(is_missing, values)):
        return None
    votes = list(map(number, values))
    for column, value, vote in zip(columns, values, votes, strict=True):
        if vote is None or vote < 0:
            return wrong(record, column, value, "a number ≥ 0", "mend the votes, or leave both empty")
    return votes[0] / sum(votes) if sum(votes) > 0 else TIE


FORMAT = Format(
    "rapidata",
    "Rapidata, Datapoint: shares of votes per dimension; --dimension decides, else `Preference`, else their mean.",
    "Parquet with prompt, video1, video2, weighted_results1_<dimension>, weighted_results2_<dimension>",
    read,
    {"prompt": "prompt"},
)
