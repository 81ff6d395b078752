"""What a pipeline's text encoders read of a prompt: each has its own tokenizer and its own limit, and cuts the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from pgdpo.messages.console import say
from pgdpo.messages.problems import shown
from pgdpo.models.encoders.text import TextReader
from pgdpo.models.protocols import Encoders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_A_TIME = 1024  # prompts that are tokenized
ONE_PROMPT = (
    "this model's text encoder reads one prompt of a row, together with the picture that its clips start from"
)
SHOWN = 6  # words that a message says were read last


class Cut(NamedTuple):
    """What one text encoder leaves out of one prompt."""

    reader: TextReader
    tokens: int  # of the prompt alone
    kept: int  # those of them that are read
    read: str  # the prompt, as far as it is read
    lost: str  # the rest

    def __str__(self) -> str:
        last = " ".join(self.read.split()[-SHOWN:])
        return (
            f"{self.tokens} tokens for {self.reader}, which reads the first {self.kept} of them, up to {shown(last)}; "
            f"cut off is {shown(self.lost)}"
        )


def cut_prompts(encoders: Encoders, prompts: Iterable[str]) -> dict[str, list[Cut]]:
    """The prompts that are too long for a text encoder -> what each such encoder leaves out of them; loads tokenizers.

    Raises OSError where a tokenizer is on a hub that cannot be reached.
    """
    found: dict[str, list[Cut]] = {}
    distinct = sorted(set(prompts))
    for reader in encoders.readers:
        tokenizer = encoders.load_tokenizer(reader.tokenizer)
        for start in range(0, len(distinct), AT_A_TIME):
            for prompt, cut in _cuts(tokenizer, reader, distinct[start : start + AT_A_TIME]):
                found.setdefault(prompt, []).append(cut)
    return found


def say_cut_prompts(encoders: Encoders, prompts: Iterable[str]) -> None:
    """A line for each text encoder that some of the prompts are too long for."""
    by_reader: dict[str, list[Cut]] = {}
    for cuts in cut_prompts(encoders, prompts).values():
        for cut in cuts:
            by_reader.setdefault(str(cut.reader), []).append(cut)
    for cuts in by_reader.values():
        longest = max(cuts, key=lambda cut: cut.tokens)
        many = "1 prompt is" if len(cuts) == 1 else f"{len(cuts)} prompts are"
        say(f"{many} too long for {longest.reader} (`pgdpo check` names each); the longest has {longest}")


def _cuts(
    tokenizer: PreTrainedTokenizerBase, reader: TextReader, prompts: list[str]
) -> Iterator[tuple[str, Cut]]:
    before = len(reader.template.partition("{}")[0])
    cleaned = [reader.clean(prompt) for prompt in prompts]
    texts = [reader.template.format(prompt) for prompt in cleaned]
    for prompt, clean, text, ids in zip(
        prompts, cleaned, texts, tokenizer(texts, verbose=False)["input_ids"], strict=True
    ):
        if len(ids) <= reader.limit:
            continue
        whole = _spans(tokenizer, text)
        read = _spans(tokenizer, text, truncation=True, max_length=reader.limit)
        tokens, kept = (
            sum(before <= first < last <= before + len(clean) for first, last in spans)
            for spans in (whole, read)
        )
        end = max(last for _, last in read) - before
        if kept < tokens:  # else the end of the template alone is cut
            yield prompt, Cut(reader, tokens, kept, clean[:end], clean[end:].strip())


def _spans(tokenizer: PreTrainedTokenizerBase, text: str, **options) -> list[tuple[int, int]]:
    """Where each token stands in `text`; (0, 0) for those that the tokenizer adds."""
    return tokenizer(text, return_offsets_mapping=True, verbose=False, **options)["offset_mapping"]
