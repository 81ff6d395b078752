"""A page's clips within so many megabytes: smaller copies first, then fewer clips, and what was done in words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pgdpo.files.atomic import sha256_of
from pgdpo.messages.console import progress_bar
from pgdpo.messages.errors import InputError
from pgdpo.report.page import SOUND, SOUND_BITS, embedded
from pgdpo.video import Sound, probe_video, read_sound, read_video, write_video

MEGABYTES = 15.0  # of a page, where nothing else is asked for
REST = 0.1  # of the page, for what is no clip
IN_BASE64 = 4 / 3  # bytes on the page for one of a file
# (shorter side, x264's rate factor), each about half to two thirds as large as the one before.
LEVELS = ((480, 23), (320, 20), (320, 24), (256, 25), (192, 27), (160, 31), (128, 35))


@dataclass(frozen=True)
class Fitted:
    """`files`: clip -> the file whose bytes the page holds; a clip that found no room is not there."""

    files: dict[Path, Path]
    words: str = ""

    def shown(self, clip: Path | None, out: Path) -> dict:
        """`file`: where a clip lies whole, as a page in the folder `out` names it; `data` and the rest of `embedded`:
        the clip itself. Both are None of no clip, `data` alone of one that found no room."""
        if clip is None:
            return {"file": None, "data": None}
        held = embedded(self.files[clip]) if clip in self.files else {"data": None}
        return {"file": quote(os.path.relpath(clip, out)), **held}


def fit(clips: Sequence[Path], folder: Path, megabytes: float) -> Fitted:
    """The clips (in their order of importance, several may be one file) for a page of at most so many megabytes.

    Smaller copies are kept in `folder` under their content's hash, so that the next page finds them. Raises InputError
    for a clip that is not there.
    """
    clips = list(dict.fromkeys(clips))
    for clip in clips:
        if not clip.is_file():
            raise InputError(
                f"{clip}: not there: run `pgdpo evaluate` again, which samples it, or restore the file"
            )
    room = megabytes * 1e6 * (1 - REST) / IN_BASE64
    if sum(clip.stat().st_size for clip in clips) <= room:
        return Fitted({clip: clip for clip in clips})
    kept: dict[Path, Path] = {}
    for level in LEVELS[_level(clips, folder, room) :]:
        kept = _kept(clips, folder, level, room)
        if len(kept) == len(clips):
            break
    return Fitted(kept, _in_words(kept, len(clips), megabytes))


def _kept(clips: Sequence[Path], folder: Path, level: tuple[int, int], room: float) -> dict[Path, Path]:
    """The first of the clips, as many as there is room for, with their copies."""
    kept, used = {}, 0
    pool = ThreadPoolExecutor(os.cpu_count())  # decoding and encoding leave Python free
    with progress_bar("clips for the report", total=len(clips)) as bar:
        smaller = pool.map(lambda clip: _smaller(clip, folder, *level), clips)
        for clip, small in zip(clips, smaller, strict=True):
            used += small.stat().st_size
            if used > room:
                break
            kept[clip] = small
            bar.advance()
    pool.shutdown(cancel_futures=True)
    return kept


def _level(clips: Sequence[Path], folder: Path, room: float) -> int:
    """The first of LEVELS that the clips are expected to fit at, judged by four of them; else the last."""
    some = clips[:: max(1, len(clips) // 4)][:4]
    for number, level in enumerate(LEVELS):
        mean = sum(_smaller(clip, folder, *level).stat().st_size for clip in some) / len(some)
        if mean * len(clips) <= 0.95 * room:
            return number
    return len(LEVELS) - 1


def _smaller(clip: Path, folder: Path, short: int, crf: int) -> Path:
    """A copy with this shorter side, at most; the clip itself where that is no larger."""
    copy = folder / f"{sha256_of(clip)[:16]}-{short}-{crf}.mp4"
    if not copy.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        sound, fps = _sound(clip), probe_video(clip).fps
        write_video(copy, read_video(clip), fps, crf=crf, short=short, sound=sound, bit_rate=SOUND_BITS)
    return copy if copy.stat().st_size < clip.stat().st_size else clip


def _sound(clip: Path) -> Sound | None:
    info = probe_video(clip)
    return None if info.sound is None else read_sound(info, 0, info.duration, SOUND)


def _in_words(kept: dict[Path, Path], of: int, megabytes: float) -> str:
    words = []
    smaller = [(clip, small) for clip, small in kept.items() if clip != small]
    if smaller:
        largest = max(smaller, key=lambda each: each[0].stat().st_size)
        full, shown = (probe_video(path) for path in largest)
        size = f"{shown.width}×{shown.height}"
        at = (
            f"at {size} of {full.width}×{full.height}"
            if size != f"{full.width}×{full.height}"
            else "at a lower rate"
        )
        heard = f", with sound of {SOUND}" if shown.sound else ""
        words.append(f"clips are shown {at}{heard}; their full files lie beside this page")
    if len(kept) < of:
        words.append(f"{of - len(kept)} of {of} found no room")
    text = "; ".join(words)
    return f"{text[:1].upper()}{text[1:]} (evaluate.report_megabytes is {megabytes:g})." if text else ""
