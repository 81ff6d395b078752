"""The rows of a split: the one place that knows of several manifests, of caps, and of a split that makes itself.

    a path          that manifest's rows
    a list          those of each manifest, up to its `most`; they take turns, so that the first rows are of all of them
    {share, by}     data.held_out: of data.train's rows those whose prompt hashes below the share; data.train the others

A row is taken or not by the hash of its own id (`most`) and of its own prompt (`share`): never by its place or by the
seed of a run.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from pgdpo.config import DataConfig
from pgdpo.messages.problems import Problem, raise_errors
from pgdpo.rows.manifest import (
    CheckedRow,
    PairRow,
    decided_rows,
    id_problem,
    of_one_kind,
    pair_rows,
    scan_manifest,
    spread,
)
from pgdpo.rows.schema import TIE

Say = Callable[[str], None]


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class Source:
    """A manifest of a split. `name`: where there are several."""

    manifest: str | Path
    name: str | None = None
    most: int | None = None


@dataclass(frozen=True)
class Scanned:
    """The rows of each source that are without errors, whether or not they are taken, and what is wrong with others."""

    parts: list[tuple[Source, list[CheckedRow]]]
    problems: list[Problem]

    @property
    def rows(self) -> list[CheckedRow]:
        return [row for _, rows in self.parts for row in rows]


def sources_of(data: DataConfig, split: str, toy: Path) -> list[Source]:
    """What `train` or `held_out` is read from, in the order of the configuration; none where it names nothing.

    `toy`: the folder with the toy's manifests.
    """
    named = getattr(data, split)
    if split == "held_out" and data.splits_itself:
        named = data.train
    if named is None:
        return []
    if isinstance(named, str):
        return [Source(toy / f"{split}.jsonl" if named == "toy" else named)]
    names = _names(data) or [None]
    return [Source(each.manifest, name, each.most) for each, name in zip(named, names, strict=True)]


def source_names(data: DataConfig, split: str) -> list[str]:
    """Under which names a split's figures are apart; none where it has one manifest."""
    return _names(data) if split == "train" or data.splits_itself else []


def shares_of(data: DataConfig) -> dict[str, Fraction] | None:
    """Name -> share of the visits, adding up to 1; None where every pair is visited as often as any other."""
    if not _names(data) or data.train[0].share is None:
        return None
    shares = [Fraction(str(source.share)) for source in data.train]
    return {name: share / sum(shares) for name, share in zip(_names(data), shares, strict=True)}


def _names(data: DataConfig) -> list[str]:
    """Given, or the file's without its ending; where that is another's too, after its folder's, then numbered."""
    if isinstance(data.train, str) or len(data.train) < 2:
        return []
    paths = [Path(re.sub(r"^[\w+.-]+://", "/", source.manifest)) for source in data.train]
    stems = Counter(_plain(path.stem) for path in paths)
    names: list[str] = []
    taken = {source.name for source in data.train}
    for source, path in zip(data.train, paths, strict=True):
        stem = _plain(path.stem)
        wanted = stem if stems[stem] == 1 else _plain(f"{path.parent.name}-{path.stem}")
        numbered = (wanted if number == 1 else f"{wanted}-{number}" for number in itertools.count(1))
        names.append(source.name or next(name for name in numbered if name not in taken))
        taken.add(names[-1])
    return names


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-") or "rows"


def scan_sources(data: DataConfig, split: str, toy: Path, *, clips_there: bool = True) -> Scanned:
    """Every row of a split's manifests, as `scan_manifest` reads them; ids must be unique over all of them,
    and all be pairs, or all groups."""
    parts, problems, seen, kind = [], [], {}, None
    for source in sources_of(data, split, toy):
        rows, found = scan_manifest(source.manifest, data.media_root, clips_there=clips_there)
        kind = kind or (rows[0].kind if rows else None)
        rows, mixed = of_one_kind(rows, kind)
        problems += [*found, *mixed]
        kept = []
        for row in rows:
            first = seen.setdefault(row.values["id"], row)
            if first is row:
                kept.append(replace(row, manifest_name=source.name))
            else:
                problems.append(id_problem(row.record, first.problem("").where))
        parts.append((source, kept))
    return Scanned(parts, problems)


def take(
    scanned: Scanned, data: DataConfig, split: str, say: Say = _silent
) -> tuple[list[CheckedRow], list[Problem]]:
    """(the rows that a split is made of, what keeps it from being one). `say` hears what is left out, and why.

    A manifest loses its ties (data.ties), then what is beyond its `most`, then the other side of the split.
    """
    own, parts, problems = split == "train" or not data.splits_itself, [], []
    for source, rows in scanned.parts:
        decided = decided_rows(rows, data.ties)
        kept = _capped(decided, source.most)
        if own and len(decided) < len(rows):
            say(
                f"{source.manifest}: {len(rows) - len(decided)} of {len(rows)} rows are ties and left out (data.ties)"
            )
        if own and len(kept) < len(decided):
            say(f"{source.manifest}: {len(kept)} of {len(decided)} rows are taken (data.train, `most`)")
        if rows and not decided:
            problems.append(_all_ties(source, len(rows)))
        parts.append(kept)
    if data.splits_itself and any(parts):
        parts, found = _side(parts, data, split, say)
        problems += found
        if split == "train" and not found:
            problems += _emptied(scanned, parts, data)
    return list(_in_turn(parts)), problems


def read_rows(data: DataConfig, split: str, toy: Path = Path("toy"), *, say: Say = _silent) -> list[PairRow]:
    """The rows of a split, ready to be encoded: clips that are remote are fetched to a local cache.

    Raises InputError, one line for each, for all that is wrong with the manifests and their rows.
    """
    scanned = scan_sources(data, split, toy)
    raise_errors(scanned.problems)
    rows, problems = take(scanned, data, split, say)
    raise_errors(problems)
    return pair_rows(spread(rows, data.pairs_per_row))


def is_held_out(prompt: str, share: float) -> bool:
    """The side of a prompt: a function of its words alone."""
    return _place(prompt) < share


def _place(prompt: str) -> float:
    return _fraction("held_out", _words(prompt))


def _words(prompt: str) -> str:
    """What all spellings of a prompt share: case, spaces, Unicode's forms and what has no width don't count."""
    seen = "".join(letter for letter in prompt if unicodedata.category(letter) != "Cf")
    folded = unicodedata.normalize("NFKC", seen).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def _fraction(stream: str, text: str) -> float:
    """A number in [0, 1), uniform over texts. `stream` keeps uses apart."""
    digest = hashlib.sha256(f"{stream} {text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _capped(rows: list[CheckedRow], most: int | None) -> list[CheckedRow]:
    if most is None or len(rows) <= most:
        return rows
    order = sorted(range(len(rows)), key=lambda place: (_fraction("most", rows[place].values["id"]), place))
    return [rows[place] for place in sorted(order[:most])]


def _side(
    parts: Sequence[Sequence[CheckedRow]], data: DataConfig, split: str, say: Say
) -> tuple[list[list[CheckedRow]], list[Problem]]:
    """The rows of one side of a split that makes itself; a Problem where one of the two has none."""
    share = data.held_out.share
    places = [[_place(row.values["prompt"]) for row in rows] for rows in parts]
    found = set(itertools.chain.from_iterable(places))  # one a prompt
    if not min(found) < share <= max(found):
        return [[] for _ in parts], [_one_sided(parts, share, found)]
    held = [
        [row for row, place in zip(rows, at, strict=True) if (place < share) == (split == "held_out")]
        for rows, at in zip(parts, places, strict=True)
    ]
    if split == "held_out":
        here, total = sum(map(len, held)), sum(map(len, parts))
        kind = next(row.kind for rows in parts for row in rows)
        say(
            f"data.held_out: {here} of {total} {kind}s are held out, {here / total:.1%} ({share:.1%} was asked for): "
            f"those of {sum(place < share for place in found)} of {len(found)} prompts"
        )
    return held, []


def _one_sided(parts: Sequence[Sequence[CheckedRow]], share: float, places: set[float]) -> Problem:
    """`places`: of the prompts, all of which lie on one side of `share`."""
    side = "held out" if share <= min(places) else "left to train on"
    low, high = math.ceil(1e4 * min(places)) / 1e4, math.floor(1e4 * max(places)) / 1e4
    return Problem(
        ", ".join(dict.fromkeys(rows[0].record.file for rows in parts if rows)),
        f"data.held_out.share is {share:g}, and of {len(places)} prompts none is {side}",
        "data.held_out.share",
        share,
        f"from {low:g} to {high:g} with these prompts" if low < high else "a share that parts the prompts",
        "set data.held_out.share to that, add prompts, or name a manifest in data.held_out",
    )


def _emptied(scanned: Scanned, parts: Sequence[Sequence[CheckedRow]], data: DataConfig) -> Iterator[Problem]:
    """Sources with a share of the visits of which the split holds out every row."""
    if shares_of(data) is None:
        return
    for (source, rows), left in zip(scanned.parts, parts, strict=True):
        if rows and not left:
            yield Problem(
                str(source.manifest),
                f"all its prompts are held out (data.held_out.share {data.held_out.share:g}): none is left to visit",
                "data.held_out.share",
                data.held_out.share,
                "a share that leaves a prompt of every manifest to train on",
                "add prompts to it, or leave it out of data.train",
            )


def _all_ties(source: Source, rows: int) -> Problem:
    return Problem(
        str(source.manifest),
        f"all {rows} rows are ties: none is left to train on",
        "preference",
        TIE,
        "0 to 1, not all 0.5",
        "set data.ties to `keep`, with an objective that reads `probability`",
    )


def _in_turn(parts: Sequence[Sequence[CheckedRow]]) -> Iterator[CheckedRow]:
    """One row of each source after the other, as long as it has any."""
    for row in itertools.chain.from_iterable(itertools.zip_longest(*parts)):
        if row is not None:
            yield row
