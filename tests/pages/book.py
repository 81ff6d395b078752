"""The pages: every Markdown file of the checkout that is written by hand, and the blocks of code in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Made by a command, which a test holds them against.
GENERATED = ("configs/OPTIONS.md",)
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block; `heading` is the line of text above it."""

    page: str
    line: int
    heading: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> dict[str, str]:
    """Path in the checkout -> text."""
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*.md"))
    hidden = (".git", "node_modules", "runs")
    names = sorted(str(path) for path in found if not path.parts[0].startswith(hidden))
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names if name not in GENERATED}


def blocks(page: str, text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        above = text[: match.start()]
        heading = above.rstrip().rpartition("\n")[2]
        yield Block(page, above.count("\n") + 1, heading, match["language"], match["text"])


def all_blocks(*languages: str) -> list[Block]:
    """The blocks of all pages in these languages, "" for none."""
    return [
        block for page, text in pages().items() for block in blocks(page, text) if block.language in languages
    ]


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", text)
