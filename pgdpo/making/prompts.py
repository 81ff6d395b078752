"""A prompt that says something else, after Tango 2 (arXiv 2404.09956): a concept dropped, or two of them swapped."""

from __future__ import annotations

import re

import numpy as np

# Words that carry no concept; dropping one of them would change nothing.
_FUNCTION = {
    *(
        "a",
        "an",
        "the",
        "of",
        "in",
        "on",
        "at",
        "to",
        "and",
        "or",
        "with",
        "by",
        "for",
        "from",
        "into",
        "over",
    ),
    *("under", "is", "are", "be", "being", "it", "its", "this", "that", "as", "while"),
}


def corrupt_prompt(prompt: str, rng: np.random.Generator) -> str | None:
    """The prompt without one of its concepts or with two of them swapped; None where it has fewer than two."""
    words = prompt.split()
    concepts = [i for i, word in enumerate(words) if re.sub(r"\W", "", word).lower() not in _FUNCTION | {""}]
    if len(concepts) < 2:
        return None
    if rng.random() < 0.5:
        del words[int(rng.choice(concepts))]
    else:
        first, second = rng.choice(concepts, size=2, replace=False)
        words[first], words[second] = words[second], words[first]
    if words == prompt.split():  # the two were the same word
        del words[concepts[-1]]
    return " ".join(words)
