"""The disk that prepared pairs or groups take, known before the first clip is encoded."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pgdpo.data.buckets import Size, size_name
from pgdpo.diffusion.streams import AUDIO
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError
from pgdpo.models.family import Family
from pgdpo.rows.manifest import PairRow
from pgdpo.rows.schema import counted


def clip_bytes(family: Family, size: Size, dtype: torch.dtype) -> int:
    """Bytes of one clip's latents."""
    return torch.Size(family.latent_shape(*size)).numel() * dtype.itemsize


def sound_bytes(family: Family, size: Size, dtype: torch.dtype) -> int:
    """Bytes of the latents of one clip's sound; 0 of a family that makes none."""
    shapes = family.stream_shapes(*size)
    return torch.Size(shapes[AUDIO]).numel() * dtype.itemsize if AUDIO in shapes else 0


def mask_bytes(family: Family, size: Size) -> int:
    """Bytes of one row's mask: float16, one number for all channels of the latents."""
    return torch.Size(family.latent_shape(*size)[1:]).numel() * torch.float16.itemsize


def conditioning_bytes(
    family: Family, latent_shape: tuple[int, ...], *, text: torch.dtype, image: torch.dtype
) -> tuple[int, int]:
    """Bytes of one sample's conditioning in these dtypes: (by its prompt, at most: it is stored without its padding; by
    an image)."""
    with torch.device("meta"):
        tensors = family.example_conditioning(1, latent_shape)
    sizes = {name: tensor.numel() for name, tensor in tensors.items() if tensor.is_floating_point()}
    images = sum(sizes.pop(name, 0) for name in family.image_names)
    return sum(sizes.values()) * text.itemsize, images * image.itemsize


def check_room(
    folder: Path,
    family: Family,
    rows: Mapping[Size, Sequence[PairRow]],
    *,
    prompts: int,
    dtype: torch.dtype,
    text_dtype: torch.dtype,
    superseded: int = 0,
) -> None:
    """Say what `folder` will take and what is free. Raises InputError if it does not fit.

    `rows`: those of each size; `prompts`: how many different ones.
    `dtype`, `text_dtype`: of latents and of embedded prompts. `superseded`: bytes of what is there, that stays beside
    what takes its place.
    """
    latents = sound = text = images = regions = 0
    for size, members in rows.items():
        clips = sum(len(row.clips) for row in members)
        latents += clips * clip_bytes(family, size, dtype)
        sound += clips * sound_bytes(family, size, dtype)
        regions += sum(row.mask is not None for row in members) * mask_bytes(family, size)
        shape = family.latent_shape(*size)
        prompt, image = conditioning_bytes(family, shape, text=text_dtype, image=dtype)
        text = max(text, prompts * prompt)
        images += len(members) * image
    need = latents + sound + text + images + regions
    stems = ["text", "negative", *(f"shard-{size_name(size)}" for size in rows)]
    there = (
        sum(file.stat().st_size for stem in stems for file in folder.glob(f"{stem}-*.safetensors"))
        - superseded
    )
    free = shutil.disk_usage(_existing(folder)).free
    parts = f"latents {_gb(latents)}, prompts at most {_gb(text)}" + (
        f", images {_gb(images)}" if images else ""
    )
    parts += f", masks {_gb(regions)}" if regions else ""
    parts += f", sound at most {_gb(sound)}" if sound else ""
    done = f"; {_gb(there)} of it may be there already" if there else ""
    number = counted([row.extra for members in rows.values() for row in members])
    say(f"{folder}: {number} take {_gb(need)} ({parts}){done}; {_gb(free)} are free")
    if need - there > free:
        raise InputError(
            f"{folder}: {_gb(need)} are needed ({parts}), {_gb(there)} are there and {_gb(free)} are free: "
            f"{_gb(need - there - free)} too little. Make room, set output_dir to another disk, or prepare smaller "
            "clips (data.num_frames, height, width, or data.latent_dtype `bfloat16`)"
        )


def _existing(folder: Path) -> Path:
    return next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
