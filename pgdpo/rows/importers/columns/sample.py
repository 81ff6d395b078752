"""What a table's first records show of its columns: the words of their names, the kinds of their values."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from pgdpo.files.locations import is_url
from pgdpo.files.tables import Record
from pgdpo.rows.importers.format import Media, is_missing, media_of, number
from pgdpo.rows.manifest import GIVEN

SIDES = (("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"), ("first", "second"), ("one", "two"))
THIRD = {"b": "c", "2": "3", "1": "2"}
FILES = (
    "video",
    "clip",
    "path",
    "file",
    "filename",
    "filepath",
    "mp4",
    "movie",
)  # text under these names is a path
CLIPS = (
    *FILES,
    "url",
    "uri",
    "link",
    "media",
    "src",
    "name",
    "output",
    "sample",
    "generation",
    "generated",
    "completion",
    "response",
    "image",
    "img",
    "picture",
)  # fmt: skip  (those behind FILES are clips if they look so)
ENDINGS = (
    ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".png", ".jpg", ".jpeg", ".webp", ".mpg", ".wmv",
)  # fmt: skip
CLIP_WORD = "video|clip|option|model|image|sample|response|answer|output|candidate|side|choice|item|path|file"
_GLUED = re.compile(  # `videoa`, `leftvideo`
    rf"^({CLIP_WORD}|score)([abwl]|left|right|first|second)$|^(left|right|first|second)({CLIP_WORD}|score)$"
)


def tokens(name: str) -> tuple[str, ...]:
    """The words and numbers that a column's name is made of: `Video 1`, `video_1`, `VIDEO1` and `video1` alike."""
    parts = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_]+", name)
    return tuple(word for part in parts for word in _GLUED.sub(r"\1\3 \2\4", part.lower()).split())


class Sample:
    """What a table's first records show."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.names = list(dict.fromkeys(name for record in records for name in record.values))

    def values(self, name: str) -> list[Any]:
        return [value for record in self.records if not is_missing(value := record.values.get(name))]

    def all(self, name: str, fits: Callable[[Any], bool]) -> bool:
        """Whether nearly all values are of a kind: a few may be wrong, and are named when they are read."""
        values = self.values(name)
        return bool(values) and sum(map(fits, values)) >= 0.9 * len(values)

    def holds_numbers(self, name: str) -> bool:
        """Also such as 1,234, of which it isn't told yet what they are."""
        return self.all(name, lambda value: number(value, comma=True) is not None)

    def holds_clips(self, name: str, stem: Sequence[str]) -> bool:
        named = set(stem) <= set(CLIPS) and bool(set(stem) & set(FILES))
        return (
            self.all(name, lambda value: Media.of(value, "") is not None)
            if named
            else self.all(name, is_clip)
        )

    def pairs(self, sides: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], tuple[str, ...]]]:
        """(two columns whose names differ by a pair of words, the other words of their names)."""
        by_words = self._by_words()
        for words, name in by_words.items():
            for (first, second), place in itertools.product(sides, range(len(words))):
                before, behind = words[:place], words[place + 1 :]
                other = by_words.get((*before, second, *behind))
                if words[place] == first and other is not None:
                    yield (name, other), (*before, *behind)

    def third(self, name: str) -> str | None:
        """The column that follows the second one of a pair, `video_3` behind `video_2`."""
        by_words, words = self._by_words(), tokens(name)
        behind = [(*words[:n], THIRD.get(each, ""), *words[n + 1 :]) for n, each in enumerate(words)]
        return next(filter(None, map(by_words.get, behind)), None)

    def _by_words(self) -> dict[tuple[str, ...], str]:
        """The first column of each name's words."""
        found: dict[tuple[str, ...], str] = {}
        for name in self.names:
            found.setdefault(tokens(name), name)
        return found


def is_clip(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or is_clip(value.get("path"))
    if isinstance(value, str):
        return value.lower().split("?")[0].endswith(ENDINGS)
    return isinstance(value, bytes)


def pictures_of(record: Record, clips: Collection[str]) -> dict[str, Media]:
    """A row's `image` and `last_image`: what stands in columns of these names, where they are none of the `clips`."""
    held = {key: record.values.get(key) for key in GIVEN.values() if key not in clips}
    return {key: media_of(record, value) for key, value in held.items() if is_clip(value)}


def is_there(record: Record, name: str) -> bool:
    media = media_of(record, record.values.get(name))
    if media is None or isinstance(media.content, bytes):
        return media is not None
    return is_url(media.content) or os.path.isfile(os.path.join(media.folder, media.content))
