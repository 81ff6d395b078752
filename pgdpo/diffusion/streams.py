"""Latents of models that make several things at once: a tensor for each stream, by its name.

A model of one stream has a tensor, `[N, C, F, H, W]`. One that makes sound with the picture has a mapping, such as
`{"video": [N, C, F, H, W], "audio": [N, C, L, M]}`: its latents, noise, targets and predictions all have that form, the
third axis is time in each, and a stream that a group of samples lacks is not in it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Latents = Tensor | dict[str, Tensor]
else:
    Latents = Any  # a name in annotations: torch is not imported for it

VIDEO, AUDIO = "video", "audio"
Shapes = Mapping[str, tuple[int, ...]]  # of one sample's latents, by stream


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


def of_shapes(make: Callable[[tuple[int, ...]], Tensor], shapes: Shapes) -> Latents:
    """Latents whose streams have these shapes, each as `make` makes it; a tensor where the picture is alone."""
    made = {name: make(shape) for name, shape in shapes.items()}
    return made if len(made) > 1 else made[VIDEO]


def elements(shapes: Shapes) -> int:
    """Numbers in one sample's latents, of all streams."""
    return sum(map(math.prod, shapes.values()))


def seed_of(seed: int, stream: str) -> int:
    """The seed of a stream's noise: the picture's is the run's own, whatever stands beside it."""
    if stream == VIDEO:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little") >> 1


def joined(parts: Sequence[Latents], join: Callable[[list[Tensor]], Tensor]) -> Latents:
    """Samples of the same streams put together by `join`, such as torch.stack, stream by stream."""
    first = parts[0]
    if not isinstance(first, Mapping):
        return join([*parts])
    return {name: join([part[name] for part in parts]) for name in first}
