"""What groups come from: prepared data, or whatever else has these names."""

from __future__ import annotations

from typing import Any, Protocol

from pgdpo.data.visits.mixture import Mixture
from pgdpo.data.visits.order import Order
from pgdpo.diffusion.streams import Shapes


class GroupSource(Protocol):
    """Groups of samples of one prompt, by index; `PreparedPairs` is one.

    `rows`: what is known of each group, `id` and the columns that objectives read. `buckets`: indexes of groups whose
    clips are of one shape and the same streams, and which have equally many samples; `latent_shapes` `(C, F, H, W)`,
    `stream_shapes` (the same by stream, with the sound's `(C, L, M)`) and `group_sizes` K: of each of them.
    `fingerprint`: what a resumed run is held against.
    """

    rows: list[dict[str, Any]]

    def __len__(self) -> int: ...

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """(index, draw), the draw counting a group's visits -> `id`, `pair_id` (63 bits that key its noise), `draw`,
        `row`, `damage`, `samples` (K tensors `[C, F, H, W]`; of several streams K mappings by their names), `mask`,
        `conditioning`, and `captions` (conditioning by the place of each sample that has its own): an item of
        `collate`. Raises InputError."""

    @property
    def buckets(self) -> list[list[int]]: ...

    @property
    def latent_shapes(self) -> list[tuple[int, ...]]: ...

    @property
    def stream_shapes(self) -> list[Shapes]: ...

    @property
    def group_sizes(self) -> list[int]: ...

    @property
    def fingerprint(self) -> str: ...

    def order(self, *, micro_batch: int, seed: int) -> Order | Mixture:
        """In which the groups are visited."""
