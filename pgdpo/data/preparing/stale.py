"""Whether prepared data are still of what a configuration names: its rows, clips, encoders and sizes, looked at now
without decoding and, where name, size and time of a file are as they were, without reading a clip."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pgdpo.config import Config
from pgdpo.data.buckets import size_name
from pgdpo.data.clips import Sampling
from pgdpo.data.preparing.made_of import entries, named_source
from pgdpo.data.preparing.tiled import NAMES, kept, tiled_sizes
from pgdpo.data.shards import ENCODING
from pgdpo.data.sources import scan_sources, take
from pgdpo.files.atomic import sha256_of
from pgdpo.files.locations import is_file, is_url, plain
from pgdpo.messages.console import progress_bar
from pgdpo.messages.problems import Problem, shown
from pgdpo.models.protocols import Encoders
from pgdpo.models.weights.kept import compute_dtype
from pgdpo.rows.manifest import CheckedRow, carried, spread
from pgdpo.rows.schema import LABELS, MANIFEST, SIDES, cut_labels

SHOWN = 5  # differences in a message
# Kinds that change no tensor: `prepare` writes them down and encodes nothing.
NO_ENCODING = {"label edited", "row removed", "order of rows"}
RENAMED = "data named"  # stands before what differs for it, and alone where the toy is another
AGAIN = "`pgdpo prepare` with this configuration makes only that anew"
LABELS_ALONE = "`pgdpo prepare` with this configuration writes that down and encodes nothing"


@dataclass(frozen=True)
class Difference:
    """One thing that is another than it was when the data were prepared; `problem` says it with its place."""

    kind: str
    problem: Problem


@dataclass
class Comparison:
    """What was found, and what could not be looked at."""

    folder: Path
    found: list[Difference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    typed: str = (
        ""  # what to type with `prepare` where a run's record names the rows, and its file may name others
    )

    @property
    def mend(self) -> str:
        kinds = {one.kind for one in self.found} - {RENAMED}
        return (LABELS_ALONE if kinds and kinds <= NO_ENCODING else AGAIN) + self.typed

    def __str__(self) -> str:
        """Kinds with their numbers, the first differences, what to do."""
        kinds = Counter(one.kind for one in self.found)
        told = ", ".join(f"{kind}: {count}" for kind, count in kinds.items())
        lines = [f"  {one.problem.where}: {one.problem.what}" for one in self.found[:SHOWN]]
        more = len(self.found) - SHOWN
        return "\n".join(
            [
                f"{self.folder}: prepared from something else than this configuration names ({told})",
                *lines,
                *([f"  and {more} more"] if more > 0 else []),
                self.mend,
            ]
        )


def compare(
    folder: Path,
    index: Mapping,
    config: Config,
    split: str,
    encoders: Encoders | None,
    *,
    typed: str = "",
    full: bool = False,
) -> Comparison:
    """`index`: of a prepared folder; `encoders`: None where the model isn't here; `typed`: what must be typed beside
    the command that mends; `full`: read every clip, also those of unchanged name, size and time.

    Where the manifest is the one that was prepared and isn't here, or clips are not (prepared data were copied), they
    are noted and nothing is said against them.
    """
    result = Comparison(folder, typed=typed)
    result.found += _settings(folder, index, config, encoders)
    tiled = (
        [size for size, was in tiled_sizes(index, encoders).items() if was] if encoders is not None else []
    )
    if tiled and encoders.tiling.asked == "auto":
        result.notes.append(kept(folder, tiled))
    embedded, told = index["text"]["files"][0].get("dtype"), str(compute_dtype(config)).removeprefix("torch.")
    if config.model.encoders == "pipeline" and embedded not in (None, told):
        result.notes.append(
            f"{folder}: prompts were embedded in {embedded}, and the run computes in {told} (train.precision), in "
            "which the model's own pipeline would embed them"
        )
    made, now = index["made_of"], named_source(config.data, split)
    key, renamed = _renamed(split, made, now)
    if now["toy"] != made["toy"]:
        both = now["toy"] and made["toy"]
        what = f"the toy's settings are {now['toy']}, prepared were {made['toy']}" if both else renamed
        result.found.append(_of(Problem(str(folder), what, f"data.{split}", now["source"]), RENAMED))
        return result
    rows = _read_rows(result, made, config, split)
    if rows is not None:
        _Rows(result, index, config, spread(rows, config.data.pairs_per_row), full).compare()
        if result.found and renamed:
            result.found.insert(0, _of(Problem(str(folder), renamed, key), RENAMED))
    return result


def _renamed(split: str, made: Mapping, now: Mapping) -> tuple[str, str]:
    """(the key that names other rows than those that were prepared, both values in words), or two empty texts."""
    before, after = (f"by {each['split']}" if "split" in each else "not at all" for each in (made, now))
    if before != after:
        return "data.held_out", f"data.held_out parts data.train {after}, prepared {before}"
    if made["source"] != now["source"]:
        return f"data.{split}", f"data.{split} is {now['source']!r}, prepared was {made['source']!r}"
    return "", ""


def _read_rows(result: Comparison, made: Mapping, config: Config, split: str) -> list[CheckedRow] | None:
    """The rows that the split is made of; None, and said in `result`, where they can't be compared."""
    now = named_source(config.data, split)
    scanned = scan_sources(config.data, split, config.output_dir / "toy", clips_there=False)
    absent = [
        str(source.manifest)
        for source, rows in scanned.parts
        if not rows and (is_url(plain(source.manifest)) or not is_file(plain(source.manifest)))
    ]
    if absent and _renamed(split, made, now) == ("", ""):
        result.notes.append(f"{', '.join(absent)} can't be read here: {result.folder} is taken as it is")
        if now["ties"] != made["ties"]:
            what = f"data.ties is {now['ties']!r}, prepared with {made['ties']!r}"
            result.found.append(_of(Problem(str(result.folder), what, "data.ties", now["ties"]), "ties"))
        return None
    errors = [problem for problem in scanned.problems if problem.severity == "error"]
    kind = "row that is wrong" if scanned.rows else "manifest that can't be read"
    rows, problems = take(scanned, config.data, split) if not errors else ([], [])
    result.found += [_of(problem, kind) for problem in [*errors, *problems]]
    return None if errors or problems else rows


def _settings(
    folder: Path, index: Mapping, config: Config, encoders: Encoders | None
) -> Iterator[Difference]:
    made, data = index["made_of"], config.data
    sampling = Sampling.of(data, config.fps)
    sizes = [list(size) for size in data.sizes]
    for key, was, now in (
        ("sizes", index["sizes"], sizes),
        ("latent_dtype", made["latent_dtype"], data.latent_dtype),
        ("encoding", made["encoding"], ENCODING),
        *((key, made["sampling"][key], value) for key, value in asdict(sampling).items()),
    ):
        if was != now:
            what = f"`{key}` is {was!r}, this configuration needs {now!r}"
            yield Difference(key, Problem(f"{folder}/index.json", what, f"data.{key}", now))
    asked = config.model.vae_tiling
    if encoders is not None and asked != "auto":
        for size, was in tiled_sizes(index, encoders).items():
            if NAMES[was] != asked:
                what = f"clips of {size_name(size)} were encoded {NAMES[was]}, this configuration asks for {asked}"
                yield Difference(
                    "vae_tiling", Problem(f"{folder}/index.json", what, "model.vae_tiling", asked)
                )
    if encoders is not None and index["encoders"] != encoders.fingerprint:
        then, here = ({**parts["clips"], **parts["text"]} for parts in (made["parts"], encoders.parts))
        other = [part for part in (then | here) if then.get(part) != here.get(part)]
        named = ", ".join(f"{part} ({then.get(part)}, now {here.get(part)})" for part in other)
        what = f"model.path is {config.model.path!r}: other encoders than those that prepared: {named}"
        yield Difference("encoders", Problem(f"{folder}/index.json", what, "model.path", config.model.path))


class _Rows:
    """The manifest's rows against the index's."""

    def __init__(
        self, result: Comparison, index: Mapping, config: Config, rows: Sequence[CheckedRow], full: bool
    ) -> None:
        self.result, self.rows, self.full = result, rows, full
        self.made = index["made_of"]["pairs"]
        self.recorded = {row["id"]: row for row in index["pairs"]}
        selected = (getattr(rule, "quality", None) for rule in config.data.select)
        self.labels = [key for key in {*LABELS, MANIFEST, *selected} if key and not key.startswith("sha256_")]
        self.keys = (*SIDES, "mask", *(["image"] if index["image"] else []))
        known = [entry for pair in self.made.values() for entry in entries(pair).values()]
        self.by_name = {name: digest for name, _, _, digest in known}
        self.known = {(name, size, time): digest for name, size, time, digest in known}
        self.digests: dict[str, str | None] = {}  # by location; None: it is not here

    def compare(self) -> None:
        found, ids = self.result.found, [row.values["id"] for row in self.rows]
        there = set(ids)
        for name in self.made:
            if name not in there:
                what = f"pair `{name}` was prepared, and the manifest has no such row that is taken"
                found.append(_of(Problem(_file(self.rows), what, "id", name, pair=name), "row removed"))
        common = [row for row in self.rows if row.values["id"] in self.made]
        self._look_at(common)
        for row, extra in zip(self.rows, carried(self.rows), strict=True):
            name = row.values["id"]
            if name not in self.made:
                found.append(_row(row, "row added", f"pair `{name}` was not prepared", "id", name))
                continue
            found += self._texts(row, extra)
            found += self._files(row)
        self._order([name for name in self.made if name in there], common)

    def _order(self, was: Sequence[str], rows: Sequence[CheckedRow]) -> None:
        for name, row in zip(was, rows, strict=True):
            if row.values["id"] != name:
                what = (
                    f"pair `{row.values['id']}` stands where `{name}` stood: batches follow the rows' order"
                )
                self.result.found.append(_row(row, "order of rows", what, "id", row.values["id"]))
                return

    def _texts(self, row: CheckedRow, extra: Mapping) -> Iterator[Difference]:
        was = self.recorded.get(row.values["id"])
        if was is None:
            return  # left out as bad
        extra = cut_labels(extra, was["span"])
        about = f"pair `{was['id']}`"
        if row.values["prompt"] != was["prompt"]:
            what = f"{about}: `prompt` is {shown(row.values['prompt'])}, prepared was {shown(was['prompt'])}"
            yield _row(row, "prompt edited", what, "prompt", row.values["prompt"])
        for key in self.labels:
            if extra.get(key) != was.get(key):
                what = f"{about}: `{key}` is {shown(extra.get(key))}, prepared was {shown(was.get(key))}"
                yield _row(row, "label edited", what, key, extra.get(key))
        for side in SIDES:
            said = extra.get(f"sha256_{side}")
            if said is not None and said != was[f"sha256_{side}"]:
                what = f"{about}: `sha256_{side}` is {said[:12]}..., and the clip's is {was[f'sha256_{side}'][:12]}..."
                yield _row(row, "hash in the row", what, f"sha256_{side}", said)

    def _files(self, row: CheckedRow) -> Iterator[Difference]:
        made, name = self.made[row.values["id"]], row.values["id"]
        was = {key: made[key][3] for key in self.keys if key in made}
        now = {key: self.digests[row.clips[key]] or was.get(key) for key in self.keys if key in row.clips}
        if was == now:
            return
        if now["chosen"] == was["rejected"] and now["rejected"] == was["chosen"]:
            what = f"pair `{name}`: `chosen` and `rejected` are swapped: what was chosen is {made['chosen'][0]!r}"
            yield _row(row, "chosen and rejected swapped", what, "chosen", row.values["chosen"])
            was = was | {side: now[side] for side in SIDES}
        for key in self.keys:
            if was.get(key) == now.get(key):
                continue
            if key not in was or key not in now:
                kind = f"{key} added" if key not in was else f"{key} removed"
                what = f"pair `{name}`: `{key}` is {row.values.get(key)!r}, prepared was {made.get(key, [None])[0]!r}"
            elif row.name_of(key) == made[key][0]:
                kind = f"{'clip' if key in SIDES else key} replaced"
                what = f"pair `{name}`: `{key}`, {row.values[key]!r}, has other bytes than what was prepared"
            else:
                kind = f"{'clip' if key in SIDES else key} renamed"
                what = f"pair `{name}`: `{key}` is {row.values[key]!r}, prepared was {made[key][0]!r}, of other bytes"
            yield _row(row, kind, what, key, row.values.get(key))

    def _look_at(self, rows: Sequence[CheckedRow]) -> None:
        """Fill `digests` for all files of `rows`, and note what could not be looked at."""
        asked = [
            (row.clips[key], row.name_of(key), made[key][0] if key in made else None)
            for row in rows
            for made in [self.made[row.values["id"]]]
            for key in self.keys
            if key in row.clips
        ]
        absent, remote, unread = 0, 0, {}
        for location, name, before in asked:
            if location in self.digests or location in unread:
                continue
            status = None if is_url(location) else _status(location)
            if status is None:  # a name is all there is to go by
                other = f"not here: {name}"
                self.digests[location] = None if name == before else self.by_name.get(name, other)
                absent, remote = absent + (not is_url(location)), remote + is_url(location)
                continue
            size, time = status
            digest = None if self.full else self.known.get((name, size, time))
            if digest is None:
                unread[location] = name
            else:
                self.digests[location] = digest
        self._read(unread)
        if absent:
            self.result.notes.append(f"{absent} clips are not here and were not compared")
        if remote:
            self.result.notes.append(f"{remote} clips lie behind URLs: their names were compared")

    def _read(self, unread: Mapping[str, str]) -> None:
        """Hash the files that have another name, size or time than they had."""
        if not unread:
            return
        with (
            progress_bar("read clips that may have changed", total=len(unread)) as bar,
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        ):
            for location, digest in zip(unread, pool.map(_digest, unread), strict=True):
                self.digests[location] = digest
                bar.advance()
        alike = sum(self.digests[location] == self.by_name.get(name) for location, name in unread.items())
        if alike and not self.full:
            self.result.notes.append(
                f"{alike} clips have other times than when they were prepared, and the same bytes: `pgdpo prepare` "
                "notes their times, and they need not be read again"
            )


def _digest(location: str) -> str:
    try:
        return sha256_of(Path(location))
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _status(location: str) -> tuple[int, int] | None:
    try:
        found = os.stat(location)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _row(row: CheckedRow, kind: str, what: str, key: str, value: Any) -> Difference:
    return _of(row.problem(what, key=key, value=value), kind)


def _of(problem: Problem, kind: str) -> Difference:
    return Difference(kind, problem)


def _file(rows: Iterable[CheckedRow]) -> str:
    return next((row.record.file for row in rows), "the manifest")
