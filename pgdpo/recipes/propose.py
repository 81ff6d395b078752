"""What the clips of one's own manifests are, and the rate, length and sizes to train a model on them at."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pgdpo.config import Config, family_class
from pgdpo.data.buckets import LEAST_SHOWN, Size, choose_bucket, share_shown, size_name
from pgdpo.data.clips import Sampling, bucket_of, planned, probe_pair, shown_as
from pgdpo.diffusion.streams import AUDIO
from pgdpo.files.locations import is_url
from pgdpo.messages.console import progress_bar
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import raise_errors
from pgdpo.rows.manifest import CheckedRow, PairRow, decided_rows, scan_manifest
from pgdpo.video import VideoInfo
from pgdpo.video.info import SAME_RATE

MOST_PAIRS = 100  # that are looked at: pairs, or groups
MOST_BUCKETS = 4
FAIR = 0.05  # of the pairs, at least, go to each bucket
GAIN = 0.02  # of all pictures, at least, is what a bucket shows more than those that are there
NEARLY_ALL = 0.95  # of the pairs have the frames that are asked for
ENOUGH = 0.8  # of those frames: if the shortest pairs have as many, they decide, and none is refused
AS_GOOD = 0.95  # of the picture is left: then the model's own size is taken
MORE = 1.05  # times the model's own pixels
KINDS_SAID = 8

Clips = Mapping[str, VideoInfo]  # by side


@dataclass(frozen=True)
class Survey:
    """The clips that were looked at, by pair, and what could not be."""

    pairs: dict[str, Clips]
    refused: dict[str, str] = field(default_factory=dict)  # pair id -> why its clips are no pair
    remote: int = 0  # pairs behind a URL, which are not fetched
    of: int = 0  # pairs of the manifests

    def lines(self) -> Iterator[str]:
        """What is there: a line for each kind of clip, the commonest first."""
        told = f"{len(self.pairs)} of {self.of} pairs were looked at"
        yield told + (f"; {self.remote} have a remote clip, which is not fetched" if self.remote else "")
        groups: dict[tuple, list[Clips]] = {}
        for clips in self.pairs.values():
            info = _first(clips)
            treatment = info.treatment or "SDR"
            groups.setdefault((info.width, info.height, round(info.fps, 2), treatment), []).append(clips)
        ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
        for (width, height, fps, treatment), members in ordered[:KINDS_SAID]:
            seconds = sorted(min(info.duration for info in clips.values()) for clips in members)
            rate = f"{fps:g} frames a second, {_span(seconds)} s" if fps else "pictures"
            yield f"  {len(members):4} pairs of {width}x{height}, {rate}, {treatment}"
        if len(ordered) > KINDS_SAID:
            yield f"  and {len(ordered) - KINDS_SAID} kinds more"
        if self.refused:
            first = next(iter(self.refused.values()))
            yield f"{len(self.refused)} pairs cannot be taken, first: {first}"


def _first(clips: Clips) -> VideoInfo:
    """Size, rate and light of all of them are its."""
    return next(iter(clips.values()))


def _span(seconds: Sequence[float]) -> str:
    low, high = f"{seconds[0]:.3g}", f"{seconds[-1]:.3g}"
    return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Proposal:
    """Keys to set, and what is to be said of them."""

    settings: dict[str, object]
    notes: list[str]


def look(manifests: Sequence[str], config: Config) -> Survey:
    """Probe clips spread over the manifests. Raises InputError for rows that `check` would refuse."""
    rows: list[CheckedRow] = []
    for manifest in manifests:
        found, problems = scan_manifest(manifest, config.data.media_root)
        raise_errors(problems)
        rows += decided_rows(found, config.data.ties)
    local = [row for row in rows if not any(is_url(row.clips[side]) for side in row.sides)]
    some = local[:: max(1, math.ceil(len(local) / MOST_PAIRS))]
    pairs: dict[str, Clips] = {}
    refused: dict[str, str] = {}
    with progress_bar("look at clips", total=len(some)) as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, clips in zip(some, pool.map(_probe, some), strict=True):
            if isinstance(clips, str):
                refused[row.values["id"]] = clips
            else:
                pairs[row.values["id"]] = clips
            bar.advance()
    return Survey(pairs, refused, len(rows) - len(local), len(rows))


def _probe(row: CheckedRow) -> Clips | str:
    clips = {side: Path(row.clips[side]) for side in row.sides}
    try:
        return probe_pair(PairRow(row.values["id"], row.values["prompt"], clips, extra=row.values))
    except InputError as error:
        return str(error)


def propose(survey: Survey, config: Config, form: Form) -> Proposal:
    """Rate, frames and sizes for the clips of `survey`, in the form that the model takes, near the size of `config`.

    What it is not for is said: pairs that are too slow, too short, enlarged or cut by more than half.
    """
    if not survey.pairs:
        return Proposal({}, ["no pair could be looked at: rate, frames and sizes are left as they are"])
    settings, notes = _rate(survey, config)
    heard, said = _sound(survey, config)
    settings, notes = settings | heard, [*notes, *said]
    config = _changed(config, settings)
    sampling = Sampling.of(config.data, config.fps)
    fast = {name: clips for name, clips in survey.pairs.items() if not _too_slow(_first(clips), sampling)}
    if not fast:
        return Proposal(settings, [*notes, "no pair is fast enough: sizes are left as they are"])
    if form.only is None:
        shapes = _shapes([shown_as(clips, sampling.fps) for clips in fast.values()], config, form)
        sizes = _with_frames(shapes, fast, sampling, config, form)
    else:
        sizes = [form.only]
    # By the rule that sorts pairs: a bucket that few of them would go to is none.
    while True:
        counts = Counter(_bucket(name, clips, sizes, sampling) for name, clips in fast.items())
        order = sorted(range(len(sizes)), key=lambda place: -counts[place])
        if len(sizes) == 1 or counts[order[-1]] >= FAIR * len(fast):
            break
        del sizes[order[-1]]
    sizes = [sizes[place] for place in order]
    settings |= _as_keys(sizes)
    return Proposal(settings, [*notes, *_told(sizes, survey, sampling)])


def _rate(survey: Survey, config: Config) -> tuple[dict[str, object], list[str]]:
    """The clips' own rate in place of a faster one of the model, where all have it."""
    fps = config.fps
    rates = [info.fps for info in map(_first, survey.pairs.values()) if info.num_frames > 1]
    if fps is None or not rates:
        return {}, []
    slow = [rate for rate in rates if rate < fps * (1 - SAME_RATE)]
    if not slow:
        return {}, []
    key = family_class(config.model.family).rate_key
    if max(rates) - min(rates) <= SAME_RATE * max(rates):
        own = round(min(rates), 3)
        return {key: own}, [
            f"all clips have {own:g} frames a second, fewer than the model's {fps:g}: {key} is theirs"
        ]
    return {}, [
        f"{len(slow)} of {len(rates)} pairs are slower than the {fps:g} frames a second that the model is shown, and "
        f"would be refused: {key}={min(slow):g} takes all, data.upsample=true repeats their frames, or leave them out"
    ]


def _sound(survey: Survey, config: Config) -> tuple[dict[str, object], list[str]]:
    """The model's hearing off where no clip sounds; what `prepare` refuses, or leaves out of the sound, is said."""
    if AUDIO not in config.model.streams:
        return {}, []
    counts, notes = Counter[str](), []
    for clips in survey.pairs.values():
        try:
            sounds = {info.sound is not None for info in clips.values()}
        except InputError as error:
            notes.append(str(error))
            continue
        counts["one-sided" if len(sounds) > 1 else "sounding" if sounds == {True} else "silent"] += 1
    if not counts["sounding"] + counts["one-sided"]:
        return {"model.audio": False}, [*notes, "no clip has sound: model.audio is false"]
    if counts["one-sided"]:
        notes.append(
            f"{counts['one-sided']} of {len(survey.pairs)} pairs have sound on one side alone, and would be refused: "
            "leave them out, or set model.audio to false"
        )
    if counts["silent"]:
        notes.append(
            f"{counts['silent']} of {len(survey.pairs)} pairs have no sound: the picture is learnt of them"
        )
    return {}, notes


def _changed(config: Config, settings: dict[str, object]) -> Config:
    for key, value in settings.items():
        section, name = key.split(".")
        part = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: part})
    return config


def _too_slow(info: VideoInfo, sampling: Sampling) -> bool:
    try:
        info.check_rate(sampling.fps, upsample=sampling.upsample)
    except InputError:
        return True
    return False


@dataclass(frozen=True)
class Form:
    """What a model takes: sides that are multiples of `spatial` pixels, and k * `temporal` + 1 frames."""

    spatial: int
    temporal: int
    only: Size | None = None  # of a model that takes one size alone, as learned positions do

    def frames(self, most: int) -> int:
        return (most - 1) // self.temporal * self.temporal + 1

    def shape(self, clip: VideoInfo, own: tuple[int, int]) -> tuple[int, int]:
        """(height, width) for clips like `clip`, without enlarging them: the model's `own` or that on its side, where
        nearly all of the picture is left; else what keeps the most of it, in pixels, at about the model's number."""
        for shape in (own, own[::-1]):
            if _enlarges(shape, clip) or share_shown((1, *shape), clip) < AS_GOOD:
                continue
            return shape
        step, pixels = self.spatial, own[0] * own[1] * MORE
        shapes = [
            (height, width)
            for height in range(step, clip.height + 1, step)
            for width in range(step, min(clip.width, int(pixels / height)) + 1, step)
        ]
        kept = {shape: shape[0] * shape[1] * share_shown((1, *shape), clip) ** 2 for shape in shapes}
        return max(kept, key=kept.__getitem__, default=(step, step))


def form_of(config: Config, shipped: Config) -> Form:
    """The form of the sizes that a model takes, by what its family refuses.

    Of a model that is not here, or not whole, it is that of the published one that `shipped` names.
    """
    from pgdpo.models import open_family
    from pgdpo.planning.published import published

    codec = published(shipped.model)
    if Path(config.model.path).is_dir():
        with contextlib.suppress(InputError):  # said when the run is planned
            codec = open_family(config.model)

    def takes(frames: int, side: int, check: Callable[[int, int, int], None] = codec.check_size) -> bool:
        try:
            check(frames, side, side)
        except InputError:
            return False
        return True

    spatial = next(side for side in (4, 8, 16, 32, 64, 128) if takes(config.data.num_frames, side))
    temporal = next(step for step in range(1, 65) if takes(1 + step, spatial))
    # A table of positions ends at large clips; learned ones are for one size, and the smallest is another.
    free = takes(1 + temporal, spatial, codec.check_positions)
    return Form(spatial, temporal, None if free else shipped.data.sizes[0])


def _shapes(clips: Sequence[VideoInfo], config: Config, form: Form) -> list[tuple[int, int]]:
    """Up to MOST_BUCKETS shapes, one after the other what makes most of the clips' pictures to be seen."""
    own = config.data.height, config.data.width
    wanted = {form.shape(clip, own) for clip in {(clip.width, clip.height): clip for clip in clips}.values()}

    def worth(shape: tuple[int, int], clip: VideoInfo) -> float:
        """Share of the picture that is shown, times that of the pixels that the model could take of it."""
        share = share_shown((1, *shape), clip)
        if _enlarges(shape, clip) or share < LEAST_SHOWN:
            return 0.0
        return share * min(1.0, shape[0] * shape[1] / min(own[0] * own[1], clip.height * clip.width))

    def total(shapes: Sequence[tuple[int, int]]) -> float:
        """By the rule that sorts pairs, which may take a clip from a shape that shows more pixels of it."""
        places = [choose_bucket([(1, *shape) for shape in shapes], clip) for clip in clips]
        return sum(
            worth(shapes[place], clip) for place, clip in zip(places, clips, strict=True) if place is not None
        )

    chosen: list[tuple[int, int]] = []
    reached = 0.0
    while len(chosen) < MOST_BUCKETS:
        totals = {shape: total([*chosen, shape]) for shape in sorted(wanted - set(chosen))}
        shape = max(totals, key=totals.__getitem__, default=None)
        if shape is None or (chosen and totals[shape] - reached < GAIN * len(clips)):
            break
        chosen.append(shape)
        reached = totals[shape]
    return chosen


def _with_frames(
    shapes: Sequence[tuple[int, int]], pairs: dict[str, Clips], sampling: Sampling, config: Config, form: Form
) -> list[Size]:
    """Each shape with the frames that nearly all have of the pairs that go to it, or all where that costs little."""
    trial = [(1, *shape) for shape in shapes]
    lengths: dict[int | None, list[int]] = {}
    for name, clips in pairs.items():
        there = shown_as(clips, sampling.fps).num_frames
        lengths.setdefault(_bucket(name, clips, trial, sampling), []).append(there)
    sizes = []
    for place, shape in enumerate(shapes):
        found = sorted(lengths.get(place, []) or [config.data.num_frames])
        most = found[math.floor((1 - NEARLY_ALL) * len(found))]
        frames = form.frames(min(most, config.data.num_frames))
        all_have = form.frames(min(found[0], frames))
        sizes.append((all_have if all_have >= ENOUGH * frames else frames, *shape))
    return sizes


def _bucket(name: str, clips: Clips, sizes: Sequence[Size], sampling: Sampling) -> int | None:
    try:
        return bucket_of(name, clips, sizes, sampling)
    except InputError:
        return None


def _as_keys(sizes: Sequence[Size]) -> dict[str, object]:
    frames, height, width = sizes[0]
    keys: dict[str, object] = {"data.num_frames": frames, "data.height": height, "data.width": width}
    return keys | ({"data.buckets": [list(size) for size in sizes]} if len(sizes) > 1 else {})


def _told(sizes: Sequence[Size], survey: Survey, sampling: Sampling) -> Iterator[str]:
    """How the pairs that were looked at go into the sizes, and those that do not."""
    counts, why, enlarged, cut, longest = Counter(), [], 0, 0, 0.0
    for name, clips in survey.pairs.items():
        try:
            size = sizes[bucket_of(name, clips, sizes, sampling)]
            taken = planned(name, clips, size, sampling)
        except InputError as error:
            why.append(str(error))
            continue
        counts[size] += 1
        enlarged += _enlarges(size[1:], _first(clips))
        cut += share_shown(size, _first(clips)) < LEAST_SHOWN
        longest = max(longest, min(info.duration for info in clips.values()) - taken.span[1])
    for size in sizes:
        yield f"{counts[size]} pairs go to {size_name(size)} (frames x height x width)"
    if why:
        yield f"{len(why)} pairs fit none and would be refused, first: {why[0]}"
    if enlarged:
        yield f"{enlarged} pairs are smaller than that and would be enlarged"
    if cut:
        yield f"{cut} pairs would lose more than half of their picture"
    if longest > 1:
        yield (
            f"up to {longest:.3g} s of a clip are left over: the first frames are taken; data.clip takes others "
            "(middle, random, or segments:N for several)"
        )


def _enlarges(shape: tuple[int, int], clip: VideoInfo) -> bool:
    return shape[0] > clip.height or shape[1] > clip.width
