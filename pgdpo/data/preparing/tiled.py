"""Prepared clips that went through the VAE in tiles: all of a folder's clips of one size go the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pgdpo.data.buckets import Size, size_name
from pgdpo.data.shards import was_tiled
from pgdpo.messages.console import say
from pgdpo.models.protocols import Encoders

if TYPE_CHECKING:
    from pgdpo.data.preparing.encode import Work

NAMES = {True: "tiled", False: "whole"}  # as `model.vae_tiling` has them


def settle_tiling(work: Work) -> None:
    """Decide for every size, the same on all ranks: as `model.vae_tiling` says, else as clips that are there have it,
    else by the memory of the rank that has least."""
    tiling = work.encoders.tiling
    for size in work.config.sizes if tiling is not None else ():
        if tiling.asked != "auto" or not tiling.cuts(size, "encoded"):
            continue
        there = work.earlier.tiled(size)
        if there is None:
            decided = work.ranks.gather(tiling.of(size, "encoded"))
            if any(decided) and not decided[0]:
                say(
                    f"clips of {size_name(size)} are encoded in tiles: another rank has no memory for whole ones"
                )
        else:
            decided = work.ranks.gather(there)
            if there:
                say(f"  {kept(work.folder, [size])}")
        tiling.settle(size, "encoded", any(decided))


def kept(folder: object, sizes: Sequence[Size]) -> str:
    """What is said of clips that were encoded in tiles."""
    named = ", ".join(map(size_name, sizes))
    return (
        f"{folder}: clips of {named} were encoded in tiles and stay so; their latents differ from whole clips', "
        "which `pgdpo prepare` makes with model.vae_tiling=whole"
    )


def tiled_sizes(index: Mapping, encoders: Encoders) -> dict[Size, bool]:
    """Size -> whether its clips were encoded in tiles, of those of a prepared index that are larger than a tile.

    A VAE whose configuration isn't here takes none whole.
    """
    found: dict[Size, bool] = {}
    for entry in index["shards"]:
        size = tuple(entry["size"])
        if size not in found and _cut(encoders, size):
            found[size] = was_tiled(entry)
    return found


def _cut(encoders: Encoders, size: Size) -> bool:
    try:
        return encoders.tiling is not None and encoders.tiling.cuts(size, "encoded")
    except OSError:
        return True
