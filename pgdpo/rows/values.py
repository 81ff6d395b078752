"""What one value of a row may be, and what is said of one that it may not."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pgdpo.messages.problems import broken_text, shown

Accepts = Callable[[Any], bool]


@dataclass(frozen=True)
class Key:
    """`accepts(value)` says whether a row may hold it; `allowed` says the same to a reader."""

    about: str
    allowed: str
    accepts: Accepts
    mend: str = "leave the key out if it isn't known"  # what to do with another value


@dataclass(frozen=True)
class Flaw:
    """What is wrong with one key of a row; where the row stands is its reader's to say."""

    key: str
    what: str
    value: Any = None
    allowed: str = ""
    suggestion: str = ""
    severity: str = "error"


def number(
    least: float = -math.inf, most: float = math.inf, *, whole: bool = False, above: bool = False
) -> Accepts:
    """Finite numbers from `least` (or above it) to `most`."""

    def accepts(value: Any) -> bool:
        return (
            isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
            and (least < value if above else least <= value)
            and value <= most
            and not (whole and value != int(value))
        )

    return accepts


def text(value: Any) -> bool:
    """Text that is not empty, of whole characters."""
    return isinstance(value, str) and bool(value.strip()) and broken_text(value) is None


def mapping_of(accepts: Accepts) -> Accepts:
    """Mappings whose values are all accepted."""
    return lambda value: isinstance(value, dict) and all(map(accepts, value.values()))


def sha256(value: Any) -> bool:
    return text(value) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


CLIP = Key("a clip", "a path relative to the manifest, or a URL", text, "name a clip")
SHA256 = Key("of the clip's bytes", "64 digits of 0-9a-f", sha256)
SOURCE_FIELDS = Key(
    "what an importer found and has no key for", "a mapping", lambda value: isinstance(value, dict)
)


def broken(key: str, found: str) -> Flaw:
    """`found`: the text in the key's value that `broken_text` found."""
    place = next(
        number for number, letter in enumerate(found) if letter == "\0" or "\ud800" <= letter <= "\udfff"
    )
    what = "a NUL character" if found[place] == "\0" else "half a character, such as half an emoji"
    around = shown(found[max(0, place - 20) : place + 20])
    return Flaw(
        key,
        f"`{key}` holds {what} ({around}, character {place + 1})",
        found,
        "whole characters, and no NUL",
        "write the text again, without it",
    )


def nearest(key: str, known: Iterable[str], cutoff: float = 0.8) -> str | None:
    """The known key that is nearly spelt like this."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=cutoff)
    return close[0] if close else None
