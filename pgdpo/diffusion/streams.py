"""Latents of models that make several things at once: a tensor for each stream, by its name.

A model of one stream has a tensor, `[N, C, F, H, W]`. One that makes sound with the picture has a mapping, such as
`{"video": [N, C, F, H, W], "audio": [N, C, L, M]}`: its latents, noise, targets and predictions all have that form, the
third axis is time in each, and a stream that a group of samples lacks is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

VIDEO, AUDIO = "video", "audio"
Latents = "Tensor | dict[str, Tensor]"


def by_stream(latents: Any) -> dict[str, Any]:
    """The tensors by the names of their streams; a tensor alone is the picture's."""
    return dict(latents) if isinstance(latents, Mapping) else {VIDEO: latents}


def each(function: Callable, latents: Any, *others: Any) -> Any:
    """`function` of a tensor; of streams by name, of each, in the form that `latents` has. Of `others` mappings give
    what they have of a stream (None where they have nothing), anything else is the same for all."""
    if not isinstance(latents, Mapping):
        return function(latents, *others)
    return {
        name: function(
            tensor, *(other.get(name) if isinstance(other, Mapping) else other for other in others)
        )
        for name, tensor in latents.items()
    }


def video_of(latents: Any) -> Tensor:
    """The picture's tensor."""
    return latents[VIDEO] if isinstance(latents, Mapping) else latents
