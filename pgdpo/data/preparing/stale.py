"""Whether prepared data are still of what a configuration names: its rows, clips, encoders and sizes, looked at now
without decoding and, where name, size and time of a file are as they were, without reading a clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pgdpo.config import Config
from pgdpo.data.buckets import size_name
from pgdpo.data.clips import Sampling
from pgdpo.data.preparing.changed import Difference, Rows
from pgdpo.data.preparing.made_of import named_source
from pgdpo.data.preparing.tiled import NAMES, kept, tiled_sizes
from pgdpo.data.shards import ENCODING
from pgdpo.data.sources import scan_sources, take
from pgdpo.diffusion.streams import AUDIO
from pgdpo.files.locations import is_file, is_url, plain
from pgdpo.messages.problems import Problem
from pgdpo.models.protocols import Encoders
from pgdpo.models.weights.kept import compute_dtype
from pgdpo.rows.manifest import CheckedRow, spread

SHOWN = 5  # differences in a message
# Kinds that change no tensor: `prepare` writes them down and encodes nothing.
NO_ENCODING = {"label edited", "row removed", "order of rows"}
RENAMED = "data named"  # stands before what differs for it, and alone where the toy is another
AGAIN = "`pgdpo prepare` with this configuration makes only that anew"
LABELS_ALONE = "`pgdpo prepare` with this configuration writes that down and encodes nothing"


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
        result.found.append(Difference(RENAMED, Problem(str(folder), what, f"data.{split}", now["source"])))
        return result
    rows = _read_rows(result, made, config, split)
    if rows is not None:
        changed = Rows(index, config, spread(rows, config.data.pairs_per_row), full)
        changed.compare()
        result.found += changed.found
        result.notes += changed.notes
        if result.found and renamed:
            result.found.insert(0, Difference(RENAMED, Problem(str(folder), renamed, key)))
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
            result.found.append(
                Difference("ties", Problem(str(result.folder), what, "data.ties", now["ties"]))
            )
        return None
    errors = [problem for problem in scanned.problems if problem.severity == "error"]
    kind = "row that is wrong" if scanned.rows else "manifest that can't be read"
    rows, problems = take(scanned, config.data, split) if not errors else ([], [])
    result.found += [Difference(kind, problem) for problem in [*errors, *problems]]
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
        then, here = (
            {name: value for part in parts.values() for name, value in part.items()}
            for parts in (made["parts"], encoders.parts)
        )
        other = [part for part in (then | here) if then.get(part) != here.get(part)]
        named = ", ".join(f"{part} ({then.get(part)}, now {here.get(part)})" for part in other)
        key, value = "model.path", config.model.path
        what = f"{key} is {value!r}: other encoders than those that prepared: {named}"
        listened, listens = AUDIO in index.get("streams", ()), encoders.sound is not None
        if listened != listens:
            key, value = "model.audio", listens
            did = "with their sound" if listened else "without their sound"
            what = f"{key} is {str(value).lower()}, and the clips were prepared {did}: {named}"
        yield Difference("encoders", Problem(f"{folder}/index.json", what, key, value))
