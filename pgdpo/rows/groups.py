"""The samples of a group's row: what each may hold, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pgdpo.messages.problems import shown
from pgdpo.rows.values import CLIP, SHA256, SOURCE_FIELDS, Flaw, Key, mapping_of, nearest, number, text

SAMPLES = "samples"

KEYS_OF_A_SAMPLE: dict[str, Key] = {
    "clip": CLIP,
    "score": Key("what a judge gave it, higher is better", "a number", number()),
    "rank": Key(
        "its place among them, ties share one", "a whole number ≥ 0, 0 the best", number(0, whole=True)
    ),
    "label": Key(
        "its own verdict", "1 (good), -1 (bad) or 0 (no part of the loss)", number(-1, 1, whole=True)
    ),
    "advantage": Key("by how much it is better than others of its prompt", "a number", number()),
    "scores": Key("scores by name", "{name: number}", mapping_of(number()), "leave out what wasn't scored"),
    "caption": Key("its own caption, where it differs from `prompt`", "text", text),
    "source": Key("where it comes from", "text", text),
    "sha256": SHA256,
    "source_fields": SOURCE_FIELDS,
}
RATINGS = ("rank", "score", "advantage", "label")  # all samples of a row have one, or none has
OF_FILES = {"clip", "sha256", "source_fields"}  # what no objective reads of a sample


def group_flaws(row: Mapping[str, Any], of_a_pair: Iterable[str]) -> Iterator[Flaw]:
    """What is wrong with `samples`. `of_a_pair`: keys that stand in pairs alone."""
    there = [key for key in of_a_pair if row.get(key) is not None]
    if there:
        named = ", ".join(f"`{key}`" for key in there)
        yield Flaw(
            SAMPLES,
            f"the row has `samples`, and {named} of a pair",
            allowed="a group (`samples`) or a pair (`chosen` and `rejected`)",
            suggestion=f"leave {named} out; what is known of a sample stands in it: {', '.join(KEYS_OF_A_SAMPLE)}",
        )
    samples = row[SAMPLES]
    if not isinstance(samples, list) or not samples or not all(isinstance(one, dict) for one in samples):
        yield Flaw(
            SAMPLES,
            f"`samples` is {shown(samples)}",
            samples,
            "a list of one or more {clip, ...}",
            'write [{"clip": "a.mp4", "rank": 0}, {"clip": "b.mp4", "rank": 1}]',
        )
        return
    for place, sample in enumerate(samples):
        yield from _flaws_of(sample, f"sample {place}")
    yield from _between(samples)


def _flaws_of(sample: Mapping[str, Any], about: str) -> Iterator[Flaw]:
    unknown = [key for key in sample if key not in KEYS_OF_A_SAMPLE]
    if sample.get("clip") is None:
        close = nearest("clip", unknown, cutoff=0.6)
        hint = f"rename `{close}`" if close else "name the sample's clip, or leave the sample out"
        yield Flaw(
            f"{SAMPLES}.clip", f"{about}: key `clip` is missing", allowed=CLIP.allowed, suggestion=hint
        )
    for key, value in sample.items():
        if value is None:
            continue
        known = KEYS_OF_A_SAMPLE.get(key)
        if known is not None and not known.accepts(value):
            yield Flaw(
                f"{SAMPLES}.{key}", f"{about}: `{key}` is {shown(value)}", value, known.allowed, known.mend
            )
        close = None if known else nearest(key, KEYS_OF_A_SAMPLE)
        if close and sample.get(close) is None and close != "clip":
            yield Flaw(
                f"{SAMPLES}.{key}",
                f"{about}: key `{key}` is not one that is read; it is carried along",
                value,
                f"`{close}`",
                f"did you mean `{close}`?",
                "warning",
            )


def _between(samples: Sequence[Mapping[str, Any]]) -> Iterator[Flaw]:
    """Ratings that some samples lack, and clips that stand twice."""
    for key in RATINGS:
        lacking = [place for place, sample in enumerate(samples) if sample.get(key) is None]
        if lacking and len(lacking) < len(samples):
            yield Flaw(
                f"{SAMPLES}.{key}",
                f"`{key}` is missing in sample {lacking[0]}, and other samples have it",
                allowed=f"`{key}` in all samples of the row, or in none",
                suggestion="add it, or leave out the sample",
            )
    clips = [sample.get("clip") for sample in samples]
    for place, clip in enumerate(clips):
        if text(clip) and clip in clips[:place]:
            yield Flaw(
                f"{SAMPLES}.clip",
                f"sample {place} is {shown(clip)}, the same file as sample {clips.index(clip)}",
                clip,
                "each clip once",
                "leave one of the two samples out",
                "warning",
            )
