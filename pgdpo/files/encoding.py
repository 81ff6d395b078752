"""In which encoding a text file was written, where nothing says it: spreadsheets save in that of their country."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from pgdpo.files import bounded

MARKS = {  # UTF-32's little-endian mark begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
BLOCK = 1 << 20
SAMPLE = 1 << 18  # bytes of lines with other letters than ASCII's: enough to tell
SURE = 0.75  # share of those letters that must be an encoding's common ones, in likely places
SIGNS = frozenset("‘’‚“”„–—…•€£™©®°²³µ«»¿¡§´·×\u00a0")  # at one place in several encodings
WESTERN = "àáâãäåæçèéêëìíîïñòóôõöøùúûüßœÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜŒ"
CENTRAL = "áâăäąćčçďéęěëíîľĺłńňóôőöŕřśšşťţúůűüýźžżßÁÂĂÄĄĆČÇĎÉĘĚËÍÎĽŁŃŇÓÔŐÖŘŚŠŞŤŢÚŮŰÜÝŹŽŻ"
TURKISH = "âçğıîöşûüÂÇĞİÎÖŞÛÜ"
RUSSIAN = "".join(map(chr, [*range(0x410, 0x450), 0x401, 0x451])) + "іїєґІЇЄҐ"
GREEK = "".join(letter for letter in map(chr, range(0x386, 0x3CF)) if letter not in "ΐΰ")


@dataclass(frozen=True)
class Alphabet:
    """The letters that are common in one encoding's languages.

    `mixed`: words hold ASCII letters too; `whole`: they hold none; None: of a script without words.
    """

    letters: frozenset[str]
    words: str | None = None


def _pairs(codec: str, leads: range, trails: range) -> frozenset[str]:
    """The characters of two bytes in this part of an encoding's plane, where its common ones stand."""
    return frozenset(
        "".join(bytes([lead, trail]).decode(codec, "ignore") for lead in leads for trail in trails)
    )


@functools.cache
def _alphabets() -> dict[str, Alphabet]:
    """By encoding; of two that fit alike the earlier one is taken."""
    high, low = range(0xA1, 0xFF), range(0x40, 0x7F)
    signs = frozenset("、。，！？：；（）「」・ー～“”…—")
    japanese = _pairs("cp932", range(0x82, 0x98), range(0x40, 0xFD))
    taiwan = _pairs("big5", range(0xA4, 0xC7), low) | _pairs("big5", range(0xA4, 0xC7), high)
    return {
        "cp1252": Alphabet(frozenset(WESTERN), "mixed"),
        "cp1250": Alphabet(frozenset(CENTRAL), "mixed"),
        "cp1254": Alphabet(frozenset(TURKISH), "mixed"),
        "cp1251": Alphabet(frozenset(RUSSIAN), "whole"),
        "cp1253": Alphabet(frozenset(GREEK), "whole"),
        "cp932": Alphabet(japanese | signs),
        "cp949": Alphabet(_pairs("euc_kr", range(0xB0, 0xC9), high) | signs),
        "gb18030": Alphabet(_pairs("gb2312", range(0xB0, 0xD8), high) | signs),
        "big5": Alphabet(taiwan | signs),
    }


def encoding_of(stream: IO[bytes]) -> str:
    """The encoding of a file, which is left at its start: by its mark, as UTF-8 (the first 16 MB of it), else by its
    letters.

    Raises ValueError for UTF-8 with some other bytes among it, and where no encoding fits.
    """
    stream.seek(0)
    start = stream.read(1 << 12)
    stream.seek(0)
    for mark, encoding in MARKS.items():
        if start.startswith(mark):
            return encoding
    for encoding, zeros, others in (
        ("utf-16-le", start[1::2], start[::2]),
        ("utf-16-be", start[::2], start[1::2]),
    ):
        # Latin letters have a zero for their other byte; a file of zeros is none.
        if zeros.count(0) > len(zeros) * 0.4 and others.count(0) < len(others) * 0.1:
            return encoding
    is_utf8 = _is_utf8(stream)
    stream.seek(0)
    if is_utf8:
        return "utf-8"
    sample = b"".join(_foreign_lines(stream))
    stream.seek(0)
    read = sample.decode("utf-8", "replace")
    if sum(letter > "\x7f" for letter in read) >= 2 * read.count("\ufffd"):
        raise ValueError("UTF-8 with other bytes among it: save the file again as UTF-8")
    shares = {name: _likelihood(sample, name, alphabet) for name, alphabet in _alphabets().items()}
    best = max(shares, key=shares.__getitem__)
    if shares[best] < SURE:
        raise ValueError("neither UTF-8 nor another encoding that can be told: save the file as UTF-8")
    return best


def _is_utf8(stream: IO[bytes]) -> bool:
    """Halves of characters count as UTF-8: the row that holds one is named."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
    try:
        left = bounded.LARGEST_LINE
        while left > 0 and (block := stream.read(min(BLOCK, left))):
            decoder.decode(block)
            left -= len(block)
        if left > 0:
            decoder.decode(b"", True)
    except UnicodeDecodeError:
        return False
    return True


def _foreign_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines that are not ASCII alone, up to SAMPLE bytes of them."""
    left = SAMPLE
    while left > 0 and (line := stream.readline(SAMPLE)):
        if not line.isascii():
            left -= len(line)
            yield line


def _likelihood(sample: bytes, encoding: str, alphabet: Alphabet) -> float:
    """The share of the letters beyond ASCII that are common ones, in words as the script has them."""
    try:
        text = sample.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(sample) - 3:  # not a character that the sample's end cuts
            return 0.0
        text = sample[: error.start].decode(encoding)
    foreign = [letter for letter in text if letter > "\x7f" and letter not in SIGNS]
    if alphabet.words is None:
        likely = sum(letter in alphabet.letters for letter in foreign)
    else:
        words = re.findall(r"[^\W\d_]+", text)
        likely = sum(_foreign_in(word) for word in words if _is_likely(word, alphabet))
    return likely / max(len(foreign), 1) if foreign else float(alphabet.words == "mixed")


def _foreign_in(word: str) -> int:
    return sum(letter > "\x7f" for letter in word)


def _is_likely(word: str, alphabet: Alphabet) -> bool:
    """A word of this alphabet's languages: its letters, and no capital within small ones."""
    cased = word.isupper() or word[1:].islower() or len(word) == 1
    if not cased or not all(letter < "\x80" or letter in alphabet.letters for letter in word):
        return False
    foreign = _foreign_in(word)
    return foreign == len(word) if alphabet.words == "whole" else foreign < len(word) or len(word) == 1
