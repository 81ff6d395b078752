"""The pages: every Markdown file of the checkout that is written by hand, its blocks, links, sentences and commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ("configs/OPTIONS.md",)  # by a command, which a test of its own holds it against
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]*)?\)")
# The line above a block that goes into a file: see tests/pages/adding.py.
PLACED = re.compile(r"`(?P<file>[\w./]+)`(, (?P<where>after|before) `(?P<line>.+)`|(?P<end>, at its end))?:")
PROGRAMS = ("pgdpo", "python", "torchrun", "pip", "pytest", "sbatch")
SENTENCE = 60  # characters from which on one that stands in two places is seen


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
    names = sorted(str(path) for path in found if not path.parts[0].startswith((".", "runs")))
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names if name not in GENERATED}


def blocks(page: str, text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        above = text[: match.start()]
        heading = above.rstrip().rpartition("\n")[2]
        yield Block(page, above.count("\n") + 1, heading, match["language"], match["text"])


def all_blocks(*languages: str, placed: bool = False) -> list[Block]:
    """The blocks of all pages in these languages, "" for none; those that go into a file apart."""
    found = (block for page, text in pages().items() for block in blocks(page, text))
    return [b for b in found if b.language in languages and bool(PLACED.fullmatch(b.heading)) == placed]


def commands(block: Block) -> Iterator[list[str]]:
    """The command lines of a block as words, without the variables before them and the remarks behind."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            del words[0]
        if words:
            yield words


def is_command(words: list[str]) -> bool:
    return words[0] in PROGRAMS or words[0].startswith("configs/cluster/")


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def sentences(text: str) -> list[str]:
    """The sentences of a page's paragraphs and lists that are long enough, without code, tables and headings."""
    lines = FENCE.sub("", text).splitlines()
    kept = ["\n" if line.startswith(("|", "#", "![")) or not line.strip() else line.strip() for line in lines]
    paragraphs = re.split(r"\n|(?:^| )(?:- |\d+\. )", " ".join(kept))
    parts = [part.strip() for paragraph in paragraphs for part in re.split(r"(?<=[.;!?]) ", paragraph)]
    return [part for part in parts if len(part) >= SENTENCE]


def repeated(texts: dict[str, str]) -> dict[str, list[str]]:
    """Sentences that stand in more than one place -> the pages."""
    places: dict[str, list[str]] = {}
    for page, text in texts.items():
        for sentence in sentences(text):
            places.setdefault(" ".join(sentence.split()), []).append(page)
    return {sentence: found for sentence, found in places.items() if len(found) > 1}
