"""Prompts that text encoders cut or refuse: the rows' and the negative one of sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pgdpo.config import sample_settings
from pgdpo.config.read import Inspection
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem
from pgdpo.models.encoders.cuts import ONE_PROMPT, Cut, cut_prompts
from pgdpo.models.family import Family
from pgdpo.models.protocols import Encoders
from pgdpo.rows.manifest import CheckedRow
from pgdpo.rows.schema import SAMPLES, captions_of, spoken, titled
from pgdpo.toy.encoders import ToyEncoders


def row_prompt_problems(family: Family, encoders: Encoders, rows: Sequence[CheckedRow]) -> Iterator[Problem]:
    """Prompts that are empty, or longer than what a text encoder reads; captions that it doesn't read.

    Raises OSError where a tokenizer is on a hub that cannot be reached, as `negative_prompt_problems` does.
    """
    captions = [captions_of(row.values) for row in rows]
    texts = [row.values["prompt"] for row in rows] + [text for own in captions for text in own.values()]
    cuts = cut_prompts(encoders, texts)
    for row, own in zip(rows, captions, strict=True):
        prompt, about = row.values["prompt"], f"`prompt` of {titled(row.values['id'], row.sides)}"
        if not prompt.strip():
            yield row.problem(
                f"{about} is empty",
                key="prompt",
                value=prompt,
                allowed=f"what {'both' if row.kind == 'pair' else 'all'} clips were made for",
                suggestion="write the prompt, unless the model is trained without any",
                severity="warning",
            )
        yield from _too_long(encoders, prompt, cuts.get(prompt, []), row.problem, "prompt", about)
        for side, caption in own.items():
            about = f"the caption of {spoken(row.values['id'], row.sides, side)}"
            key = "caption_rejected" if row.kind == "pair" else f"{SAMPLES}.caption"
            if family.reads_pictures:
                yield row.problem(
                    f"{about}: {ONE_PROMPT}",
                    key=key,
                    value=caption,
                    allowed="no caption of a sample's own",
                    suggestion="leave it out",
                )
            yield from _too_long(encoders, caption, cuts.get(caption, []), row.problem, key, about)


def negative_prompt_problems(inspected: Inspection, family: Family, encoders: Encoders) -> Iterator[Problem]:
    """The negative prompt that clips are sampled with, the file's or the card's; of none there is nothing to say."""
    config, key = inspected.loaded, "evaluate.negative_prompt"
    prompt = sample_settings(config.evaluate, family.sampling(config.data.sizes[0][1:])).negative_prompt
    cuts = cut_prompts(encoders, [prompt]).get(prompt, [])
    yield from _too_long(encoders, prompt, cuts, inspected.problem, key, key)


def _too_long(
    encoders: Encoders,
    prompt: str,
    cuts: Sequence[Cut],
    problem: Callable[..., Problem],
    key: str,
    about: str,
) -> Iterator[Problem]:
    """`problem`: makes one of the row or configuration that the prompt stands in, under `key`."""
    for cut in cuts:
        yield problem(
            what=f"{about} has {cut}",
            key=key,
            value=cut.tokens,
            allowed=f"at most {cut.kept} tokens",
            suggestion="shorten the prompt, or let its end tell nothing new",
            severity="warning",
        )
    if isinstance(encoders, ToyEncoders):
        try:
            encoders.check_prompt(prompt)
        except InputError as error:
            what, _, allowed = str(error).rpartition("; ")
            yield problem(
                what=f"{about}: {what}",
                key=key,
                value=prompt,
                allowed=allowed,
                suggestion="shorten the prompt",
            )
