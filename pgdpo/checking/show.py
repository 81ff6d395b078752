"""The page of `check --show`: rows of each split as shot and as the model will see them, before anything is encoded.

The right-hand clips are read through the plan that `prepare` follows, so that the page cannot disagree with it.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pgdpo.checking.clips import Clip
from pgdpo.checking.findings import Findings
from pgdpo.config import Config
from pgdpo.data.buckets import Size, share_shown
from pgdpo.data.clips import PairPlan, Sampling, bucket_of, planned, unlike, unsaid
from pgdpo.diffusion.streams import AUDIO
from pgdpo.files.locations import fetch, is_url
from pgdpo.messages.console import progress_bar
from pgdpo.messages.errors import InputError
from pgdpo.messages.formats import in_text, number
from pgdpo.messages.problems import Problem
from pgdpo.report.page import PIXEL_ART, SOUND, SOUND_BITS, embedded, embedded_picture, write_page
from pgdpo.rows.groups import RATINGS
from pgdpo.rows.manifest import GIVEN, PICTURES, CheckedRow, decided_rows, spread
from pgdpo.rows.ranked import drawn
from pgdpo.rows.schema import LABELS, SAMPLES, said_of, samples_of, worded
from pgdpo.video import Sound, SoundInfo, VideoInfo, fit_picture, read_frames, read_sound, write_video
from pgdpo.video.picture import read_picture

TEMPLATE = "checking/check.html.jinja"
MOST = 10  # pairs of a split
BUDGET = 10_000_000  # bytes of the page's clips, all together
AT_A_TIME = min(4, os.cpu_count() or 1)  # pairs; each holds its frames in memory
SECONDS = 6.0  # of a clip as shot, about the span that is taken
FASTEST = 60.0  # frames a second that a clip as shot is played at
# (pixels of the longer side, x264's rate factor, every how many frames): the first at which a pair is small enough.
LEVELS = ((384, 23, 1), (288, 27, 1), (224, 31, 1), (160, 34, 2), (128, 38, 4), (96, 44, 8))
UNREACHED = {  # said of a row's picture where the part that is taken has a frame of its own in its place
    0: "not taken: the span begins later",
    -1: "not taken: the span ends earlier",
}
LIGHTS = {"sdr": "SDR", "pq": "HDR (PQ), shown in SDR", "hlg": "HDR (HLG), shown in SDR"}
OF_FILES = {
    "fps",
    "num_frames",
    "width",
    "height",
    "sha256_chosen",
    "sha256_rejected",
    SAMPLES,
}  # no labels of a row


def check_page(out: Path) -> None:
    """Raises InputError for a name that is no page's: another file would be written over."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--show is {str(out)!r}: name the page to write, a file that ends in .html")


def write_pairs(findings: Findings, config: Config, out: Path) -> int:
    """Write the page of what was found; returns how many pairs it shows.

    Up to ten pairs of a split: one of each kind (what is done to its clips, their rate, light and bucket, how much of
    the picture is left, what is wrong with it), then others from all over the manifest. Clips are shrunk until they
    take BUDGET bytes of the page at most.
    """
    of_row: dict[str, list[Problem]] = {}
    for problem in findings.problems:
        of_row.setdefault(problem.where, []).append(problem)
    looked = {split: _look(rows, findings.clips, config, of_row) for split, rows in findings.rows.items()}
    chosen = {
        split: [pairs[place] for place in choose([pair.kind for pair in pairs], MOST)]
        for split, pairs in looked.items()
    }
    total = sum(map(len, chosen.values()))
    splits = []
    with progress_bar("show pairs", total=total) as bar, ThreadPoolExecutor(AT_A_TIME) as pool:
        for split, pairs in chosen.items():
            cards = []
            for card in pool.map(lambda pair: pair.card(findings.clips, BUDGET // total, config), pairs):
                cards.append(card)
                bar.advance()
            scanned = findings.scanned.get(split, [])
            ties = len(scanned) - len(decided_rows(scanned, config.data.ties))
            splits.append({"name": split, "of": len(looked[split]), "ties": ties, "pairs": cards})
    places = {pair.row.problem("").where for pairs in chosen.values() for pair in pairs}
    others = [problem for problem in findings.problems if problem.where not in places]
    write_page(
        out,
        TEMPLATE,
        config=findings.config,
        counts=findings.counts,
        splits=splits,
        shown=total,
        views=findings.views,
        kind=findings.kind,
        others=sorted(others, key=lambda problem: problem.severity),
        rate=config.fps,
    )
    return total


def choose(kinds: Sequence[Hashable], most: int) -> list[int]:
    """Places of up to `most` things, ascending: the first of the commonest kind and of each other, the rarest first;
    where there is room for more, from all over the sequence."""
    counts = Counter(kinds)
    rarest = sorted(counts, key=counts.__getitem__)
    taken = {kinds.index(kind) for kind in (rarest[-1:] + rarest[:-1])[:most]}
    rest = [place for place in range(len(kinds)) if place not in taken]
    more = min(most, len(kinds)) - len(taken)
    return sorted(taken | {rest[(2 * each + 1) * len(rest) // (2 * more)] for each in range(more)})


def crop(info: VideoInfo, size: Size) -> tuple[float, float]:
    """Shares of a clip's width and height that are left when it covers a size and is cropped about its centre."""
    width, height = size[2] / info.width, size[1] / info.height
    return width / max(width, height), height / max(width, height)


def _look(
    rows: list[CheckedRow], clips: Mapping[str, Clip], config: Config, problems: Mapping[str, list[Problem]]
) -> list[Pair]:
    sampling = Sampling.of(config.data, config.fps)
    return [
        Pair(row, _plan(row, clips, config.data.sizes, sampling), problems.get(row.problem("").where, []))
        for row in spread(rows, sampling.spans)
    ]


def _plan(
    row: CheckedRow, clips: Mapping[str, Clip], sizes: Sequence[Size], sampling: Sampling
) -> PairPlan | str:
    """What is taken of a row's clips, or why nothing is."""
    own = {side: clips[row.clips[side]] for side in row.sides}
    infos = {side: clip.info for side, clip in own.items()}
    for side, clip in own.items():
        if clip.error:
            return f"{worded(side)}: {clip.error}"
    for odd in (*unlike(infos), *unsaid(row.values, infos)):
        return odd.what
    try:
        name = row.values["id"]
        return planned(name, infos, sizes[bucket_of(name, infos, sizes, sampling)], sampling)
    except InputError as error:
        return str(error)


@dataclass(frozen=True)
class Pair:
    """A pair or group with what `prepare` would do to it, or why it would refuse, and what was found wrong with it."""

    row: CheckedRow
    plan: PairPlan | str
    problems: Sequence[Problem]

    @property
    def kind(self) -> Hashable:
        """Equal of pairs that are treated alike."""
        wrong = frozenset((problem.severity, problem.key) for problem in self.problems)
        if isinstance(self.plan, str):
            return wrong
        view = re.sub(" from .*? s", "", self.plan.view)
        info, size = self.plan.like, self.plan.size
        return wrong, view, round(info.fps, 2), info.light, size, round(share_shown(size, info), 1)

    def card(self, clips: Mapping[str, Clip], share: int, config: Config) -> dict:
        """What the template shows of it; its clips take `share` bytes of the page at most, or as few as can be."""
        plan = None if isinstance(self.plan, str) else self.plan
        own = {side: clips[self.row.clips[side]] for side in self.row.sides}
        films = {}
        for side, clip in own.items():
            if not clip.error:
                films[side, "shot"] = _as_shot(clip.info, plan)
            if plan is not None:
                films[side, "model"] = _as_taken(clip.info, plan, AUDIO in config.model.streams)
        pictures = _pictures(self.row, plan)
        held = sum(len(picture["data"] or "") for picture in pictures)
        shown, level = _encoded(films, share - held)
        values = self.row.values
        return {
            "id": values["id"],
            "prompt": values["prompt"],
            "refused": None if plan else self.plan,
            "problems": self.problems,
            "kind": self.row.kind,
            "sides": [
                (side, name, " · ".join(ratings), shown.get((side, "shot")), shown.get((side, "model")))
                for side, (name, *ratings) in drawn(self.row.values).items()
            ],
            "sounding": any(film.sound for film in films.values()),
            "pictures": pictures,
            "crop": crop(plan.like, plan.size) if plan else None,
            "facts": _facts(plan, own) | _sounds(own, config) | _labels(self.row),
            "note": _note(films, level),
        }


def _pictures(row: CheckedRow, plan: PairPlan | None) -> list[dict]:
    """The pictures that a row names, as the template takes them, and which of them no model is given."""
    found = []
    for frame, key in GIVEN.items():
        if (location := row.clips.get(key)) is None:
            continue
        words = "" if plan is None or plan.reaches(frame) else UNREACHED[frame]
        try:
            pixels = read_picture(fetch(location) if is_url(location) else Path(location))
        except (InputError, OSError) as error:
            pixels, words = None, str(error)
        found.append(embedded_picture(key, pixels, words))
    return found


@dataclass(frozen=True)
class Film:
    """Frames to be shown at a rate, their size before they were shrunk for the page, and their sound."""

    frames: np.ndarray  # uint8 [F, H, W, 3]
    rate: float
    full: tuple[int, int]  # height, width
    sound: Sound | None

    def at(self, most: int, every: int) -> Film:
        """With `most` pixels on the longer side at most, and every so manyth frame."""
        size = _small(self.full, most)
        frames = self.frames[::every]
        if size != frames.shape[1:3]:
            frames = np.stack([fit_picture(frame, size) for frame in frames])
        return Film(frames, self.rate / every, self.full, self.sound)


def _small(full: tuple[int, int], most: int) -> tuple[int, int]:
    """(height, width) of equal aspect ratio, even, with `most` pixels on the longer side at most."""
    ratio = min(1.0, most / max(full))
    height, width = (max(2, 2 * round(side * ratio / 2)) for side in full)
    return height, width


def _as_shot(info: VideoInfo, plan: PairPlan | None) -> Film:
    """The whole picture at its own rate; of a long clip the seconds about the span that is taken."""
    rate = min(info.fps, FASTEST) or None
    there = info.frames_at(rate)
    count = min(there, math.ceil(SECONDS * (rate or 1.0)))
    middle = sum(plan.span) / 2 if plan else 0.0
    first = min(max(round(middle * (rate or 1.0) - count / 2), 0), there - count)
    full = info.height, info.width
    numbers = info.numbers_at(rate, first, count)
    sound = _heard(info, first / (rate or 1.0), count / (rate or 1.0))
    return Film(read_frames(info, numbers, _small(full, LEVELS[0][0])), rate or 1.0, full, sound)


def _as_taken(info: VideoInfo, plan: PairPlan, hears: bool) -> Film:
    """`hears`: whether the model is given sound."""
    full, rate = plan.size[1:], plan.rate or 1.0
    sound = _heard(info, plan.first / rate, plan.size[0] / rate) if hears else None
    return Film(read_frames(info, plan.numbers(info), full), rate, full, sound).at(LEVELS[0][0], 1)


def _heard(info: VideoInfo, first: float, seconds: float) -> Sound | None:
    """The sound beside a part of the picture, as far as its track goes."""
    track = _track(info)
    if track is None or track.end <= first:
        return None
    with contextlib.suppress(InputError):  # as in `_track`
        return read_sound(info, first, min(seconds, track.end - first), SOUND)


def _track(info: VideoInfo) -> SoundInfo | None:
    """What a clip's track is; None also of one that cannot be read, which the row's problems name."""
    with contextlib.suppress(InputError):
        return info.sound


def _encoded(films: Mapping[tuple, Film], share: int) -> tuple[dict[tuple, dict], tuple[int, int, int]]:
    """(the films as the template takes them, the level): all of a pair at one level, so that none looks worse than
    another by our doing."""
    with tempfile.TemporaryDirectory() as folder:
        for level in LEVELS:
            most, factor, every = level
            shown = {}
            for place, (key, film) in enumerate(films.items()):
                small = film.at(most, every)
                path = Path(folder) / f"{place}.mp4"
                write_video(
                    path, small.frames, small.rate, crf=factor, sound=small.sound, bit_rate=SOUND_BITS
                )
                hard = max(film.full) <= most and film.full[1] < PIXEL_ART
                shown[key] = embedded(path) | {"pixel_art": hard}
            if sum(len(each["data"]) for each in shown.values()) <= share:
                break
    return shown, level


def _note(films: Mapping[tuple, Film], level: tuple) -> str:
    """What the page shows less of than there is."""
    most, _, every = level
    parts = [f"shrunk to {most} pixels"] if any(max(film.full) > most for film in films.values()) else []
    parts += [f"every {every}th frame"] if every > 2 else ["every second frame"] if every == 2 else []
    return f"on this page {', '.join(parts)}" if parts else ""


def _facts(plan: PairPlan | None, own: Mapping[str, Clip]) -> dict[str, str]:
    """What is done to the clips, in words."""
    infos = [clip.info for clip in own.values() if not clip.error]
    if plan is None:
        return {
            worded(
                side
            ): f"{clip.info.width}×{clip.info.height}, {clip.info.num_frames} frames, {_rate(clip.info.fps)}, "
            + _seconds(clip.info.duration)
            for side, clip in own.items()
            if not clip.error
        }
    info, (frames, height, width) = plan.like, plan.size
    lengths = dict.fromkeys(str(each.num_frames) for each in infos)
    durations = dict.fromkeys(f"{each.duration:.3g}" for each in infos)
    numbers = plan.numbers(info)
    as_they_are = numbers == list(range(numbers[0], numbers[0] + frames))
    grown = max(height / info.height, width / info.width)
    facts = {
        "rate": f"{_rate(info.fps)}{', not all equally long' if info.variable else ''}"
        + (", frame by frame" if as_they_are else f" → {_rate(plan.rate)}"),
        "frames": f"{frames} of {' and '.join(lengths)}",
        "span": f"{plan.span[0]:.3g} to {_seconds(plan.span[1])} of {' and '.join(durations)}",
        "size": f"{info.width}×{info.height} → {width}×{height}"
        + (f", enlarged {grown:.2g} times" if grown > 1 else ""),
        "picture": f"{100 * share_shown(plan.size, info):.3g}% of it is left",
        "light": LIGHTS[info.light],
    }
    if not info.fps:
        del facts["rate"], facts["span"]
    treated = [f"{info.wide} colours, brought to BT.709"] if info.wide else []
    treated += ["interlaced, made whole (yadif)"] if info.interlaced else []
    treated += (
        [f"pixels {info.pixel.numerator}:{info.pixel.denominator}, made square"] if info.pixel != 1 else []
    )
    return facts | ({"also": "; ".join(treated)} if treated else {})


def _sounds(own: Mapping[str, Clip], config: Config) -> dict[str, str]:
    """What is to be heard of the clips, in words; nothing where all are silent."""
    found = [_track(clip.info) for clip in own.values() if not clip.error]
    if not any(found):
        return {}
    kinds = dict.fromkeys(f"{sound}, {_seconds(sound.seconds)}" if sound else "none" for sound in found)
    return {
        "sound": " and ".join(kinds) + ("" if AUDIO in config.model.streams else "; the model is given none")
    }


def _rate(fps: float) -> str:
    return f"{number(round(fps, 3), 5)} a second" if fps else "a picture"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s"


def _labels(row: CheckedRow) -> dict[str, str]:
    """The prompt's length, and what the row says of its clips."""
    values = row.values
    prompt = values["prompt"]
    facts = {"prompt": f"{len(prompt.split())} words, {len(prompt)} characters"}
    kept = [key for key in (*LABELS, *PICTURES, "licence") if key not in OF_FILES]
    facts |= {key: in_text(values[key]) for key in kept if values.get(key) is not None}
    for side, sample in zip(row.sides, samples_of(values), strict=False):
        told = {key: value for key, value in sample.items() if key not in RATINGS}
        facts |= {worded(side): in_text(told)} if told else {}
    return facts | {f"{worded(side)} file": said_of(values, side) for side in row.sides}
