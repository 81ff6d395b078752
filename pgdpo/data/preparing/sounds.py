"""The sound of a row's clips, as long as what is taken of their picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from pgdpo.data.clips import KINDS_SAID, PairPlan, named
from pgdpo.messages.errors import InputError
from pgdpo.rows.manifest import PairRow
from pgdpo.rows.schema import kind_of, titled, worded
from pgdpo.video import Sound, SoundFormat, SoundInfo, VideoInfo, read_sound
from pgdpo.video.listen import missing

LATE = 0.1  # seconds by which a track may begin after its picture and nothing is said
INAUDIBLE = 1e-3  # seconds of silence at its end of which nothing is said


def tracks_of(name: str, clips: Mapping[str, VideoInfo]) -> dict[str, SoundInfo]:
    """The tracks of a row's clips by side; none where no clip has one.

    Raises InputError where some have one and some have not: sound and silence are no preference of sounds.
    """
    found = {}
    for side, info in clips.items():
        with named(name, clips, side):
            found[side] = info.sound
    silent = [side for side, track in found.items() if track is None]
    if silent and len(silent) < len(clips):
        heard = next(side for side in clips if side not in silent)
        raise InputError(f"{titled(name, clips)}: {one_sided(clips, heard, silent[0])}")
    return {} if silent else found


def one_sided(clips: Mapping[str, VideoInfo], heard: str, silent: str) -> str:
    """What is said of clips of which one has sound and another has not."""
    each = "both clips" if kind_of(clips) == "pair" else "all its clips"
    return (
        f"{worded(heard)} ({clips[heard].path}) has sound and {worded(silent)} ({clips[silent].path}) has none: "
        f"give {each} sound or none, leave the row out, or train on the picture alone (model.audio: false)"
    )


def treatment(name: str, plan: PairPlan, fmt: SoundFormat | None = None) -> str:
    """What is done to the sound of what a plan takes, the same words for the same kind; empty of a silent row. `fmt`:
    None where what the model takes is not looked at.

    Raises InputError for sound on some sides alone, and for a track that ends before what is taken.
    """
    kinds = set()
    for side, track in tracks_of(name, plan.clips).items():
        with named(name, plan.clips, side):
            short = missing(plan.clips[side], plan.span[1])
        words = [str(track) if fmt is None else f"{track} {_made(track, fmt)}"]
        words += ["silence before it begins"] * (track.start - plan.span[0] > LATE)
        words += ["silence at its end"] * (short > INAUDIBLE)
        words += ["the player's of several tracks"] * (track.tracks > 1)
        kinds.add(", ".join(words))
    return "; ".join(sorted(kinds))


def _made(track: SoundInfo, fmt: SoundFormat) -> str:
    return "as it is" if (track.rate, track.channels) == (fmt.rate, fmt.channels) else f"made {fmt}"


def read_sounds(row: PairRow, plan: PairPlan, fmt: SoundFormat) -> dict[str, Sound]:
    """The sound of each side of what the plan takes. Raises InputError."""
    found = {}
    for side, info in plan.clips.items():
        with named(row.id, plan.clips, side):
            found[side] = read_sound(info, plan.first / plan.rate, plan.size[0] / plan.rate, fmt)
    return found


def sounds_said(treatments: Sequence[str], what: str) -> Iterator[str]:
    """A line for each kind of sound, and for the rows that have none: of how many pairs (or groups)."""
    kinds = Counter(filter(None, treatments))
    for kind, count in kinds.most_common(KINDS_SAID):
        yield f"sound of {count} {what}s: {kind}"
    if len(kinds) > KINDS_SAID:
        yield f"and {len(kinds) - KINDS_SAID} kinds of sound more"
    silent = len(treatments) - kinds.total()
    if silent:
        yield f"{silent} of {len(treatments)} {what}s have no sound: their audio part doesn't count"
