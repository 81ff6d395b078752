"""The dtypes that safetensors files hold their tensors in, by their headers alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from pgdpo.models.family import Family

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAMES = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


def stored_dtypes(family: Family) -> dict[str, torch.dtype]:
    """Name -> dtype of the tensors in the files of the transformer that training began with, floats of 16 bits or more.

    Empty where weights were drawn, or their files are not safetensors.
    """
    if family.model.random_init:
        return {}
    folder = family.part_folder(family.transformer_folder) or _downloaded(family)
    # Not those of a variant (`.fp16.safetensors`), which may lie beside them.
    patterns = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*.safetensors")
    files = (file for pattern in patterns for file in folder.glob(pattern))
    return {name: FLOATS[dtype] for file in files for name, dtype, _ in _headers(file) if dtype in FLOATS}


def described_dtypes(folder: Path) -> str:
    """What a folder's safetensors are written in, that of most elements first: `bf16, some fp32`."""
    elements: Counter[str] = Counter()
    for file in folder.rglob("*.safetensors"):
        for _, dtype, numel in _headers(file):
            elements[NAMES.get(dtype, dtype)] += numel
    return ", some ".join(dtype for dtype, _ in elements.most_common())


def _headers(file: Path) -> Iterator[tuple[str, str, int]]:
    """(name, dtype as safetensors calls it, elements) of a file's tensors."""
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.offset_keys():
            part = tensors.get_slice(name)
            yield name, part.get_dtype(), math.prod(part.get_shape())


def _downloaded(family: Family) -> Path:
    """The folder of a hub id's transformer, which was loaded before."""
    from huggingface_hub import snapshot_download

    part = family.transformer_folder
    return Path(snapshot_download(family.source, allow_patterns=[f"{part}/*"], local_files_only=True)) / part
