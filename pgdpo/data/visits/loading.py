"""Items of a source -> batches, read ahead by threads where a GPU computes meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from pgdpo.data.preparing.ahead import ahead
from pgdpo.data.visits.source import GroupSource
from pgdpo.diffusion.streams import joined
from pgdpo.rows.schema import SAMPLES

WORKERS = 2  # threads that read ahead beside a GPU: one hashes while another waits for the disk


def load_batches(
    data: GroupSource, batches: Iterable[list[tuple[int, int]]], *, workers: int | None = None
) -> Iterator[dict]:
    """Batches (of `collate`) of these (index, draw)s, in their order, in pinned memory where there is a GPU.

    `workers`: threads that read ahead, two batches each at most; 0: what is asked for is read then. By default
    `WORKERS` beside a GPU, which computes meanwhile, and none without: what computes there is what would read.
    """
    gpu = torch.cuda.is_available()
    workers = (WORKERS if gpu else 0) if workers is None else workers

    def read(jobs: list[tuple[int, int]]) -> dict:
        batch = collate([data[job] for job in jobs])
        return _pinned(batch) if gpu else batch

    if workers == 0:
        yield from map(read, batches)
        return
    with contextlib.closing(ahead(read, batches, threads=workers, most=2 * workers)) as reads:
        for _, batch in reads:
            yield batch.result()


def _pinned(value: Any) -> Any:
    """The same with its tensors in pinned memory."""
    if isinstance(value, torch.Tensor):
        return value.pin_memory()
    return {name: _pinned(part) for name, part in value.items()} if isinstance(value, dict) else value


def collate(items: list[dict]) -> dict:
    """Items of groups of one size K, one shape and the same streams -> a batch, in the dtypes of the files: `to_device`
    has them in fp32.

    `latents` [K * B, C, F, H, W], of several streams by name, member by member: sample k of group g is row k * B + g,
    of pairs the chosen half comes first; `conditioning`, a dict of tensors [B, ...], which `for_members` has for all
    members, or [K * B, ...] where some sample has a caption of its own; `mask` [B, 1, F, H, W] (None unless every group
    has one), `pair_ids` and `draw` [B], `ids`, `rows`; `groups`: K, None of pairs; `damage`: (id, what is wrong) of
    each damaged group that another one stands in for, else None.
    """
    members = range(len(items[0]["samples"]))
    masks = [item["mask"] for item in items]
    conditioning = [item["conditioning"] for item in items]
    if any(item["captions"] for item in items):
        conditioning = [
            item["conditioning"] | item["captions"].get(member, {}) for member in members for item in items
        ]
    return {
        "ids": [item["id"] for item in items],
        "rows": [item["row"] for item in items],
        "damage": [item["damage"] for item in items],
        "pair_ids": torch.tensor([item["pair_id"] for item in items]),
        "draw": torch.tensor([item["draw"] for item in items]),
        "groups": len(members) if SAMPLES in items[0]["row"] else None,
        "latents": joined([item["samples"][member] for member in members for item in items], torch.stack),
        "mask": None if any(mask is None for mask in masks) else torch.stack(masks),
        "conditioning": stack_conditioning(conditioning),
    }


def stack_conditioning(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Conditioning of single samples -> of a batch, `[N, ...]` under each name."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def to_device(tensors: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """On `device`, in fp32 what is floating. The copy of pinned memory goes on while the host does."""
    there = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in there.items()}


def for_members(conditioning: dict[str, torch.Tensor], samples: int) -> dict[str, torch.Tensor]:
    """Conditioning `[B, ...]` of groups -> of all their samples, member by member; `[samples, ...]` stays as it is."""
    return {
        name: torch.cat([tensor] * (samples // len(tensor))) if len(tensor) < samples else tensor
        for name, tensor in conditioning.items()
    }
