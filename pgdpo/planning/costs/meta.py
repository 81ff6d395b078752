"""The policy of a configuration on the meta device: shapes, dtypes and what trains, without a byte of weights."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pgdpo.config import Config
from pgdpo.engine.policy import base_dtype
from pgdpo.models.adapters.adapter import add_adapter
from pgdpo.models.family import Family
from pgdpo.models.protocols import TokenSharing
from pgdpo.models.weights.kept import hold_in


class Size(NamedTuple):
    """One parameter."""

    numel: int
    itemsize: int  # bytes an element
    trained: bool


def meta_policy(
    family: Family,
    config: Config,
    depths: dict[str, int] | None = None,
    *,
    adapter: bool = True,
    dtype: torch.dtype | None = None,
) -> torch.nn.Module:
    """The transformer as `build_policy` would make it, on the meta device.

    `depths`: keep so many blocks of the named lists of blocks. `adapter`: False for the frozen copy of the reference.
    `dtype`: of the weights, in place of what training holds them in.
    """
    with torch.device("meta"):
        transformer = family.from_architecture(family.architecture())
        for name, depth in (depths or {}).items():
            del getattr(transformer, name)[depth:]
        hold_in(transformer, dtype or base_dtype(config))
        if adapter and config.model.adapter is not None:
            add_adapter(transformer, config.model.adapter, config.train.seed)
    return transformer.train()


def sizes(transformer: torch.nn.Module) -> list[Size]:
    """Every parameter, in the order that DeepSpeed takes them."""
    return [Size(p.numel(), p.element_size(), p.requires_grad) for p in transformer.parameters()]


def attention_widths(transformer: torch.nn.Module, sharing: TokenSharing) -> dict[str, int]:
    """Channels of each attention among a clip's tokens, summed over the transformer's blocks."""
    blocks = [block for name in sharing.blocks for block in transformer.get_submodule(name)]
    return {
        name: sum(block.get_submodule(name).to_q.out_features for block in blocks)
        for name in sharing.attentions
    }


def block_lists(transformer: torch.nn.Module) -> dict[str, int]:
    """Name -> length of the transformer's lists of equal blocks, those that are long enough to be worth shortening."""
    found = {}
    for name, module in transformer.named_children():
        if not isinstance(module, torch.nn.ModuleList) or len(module) <= 3:
            continue
        shapes = [[tuple(p.shape) for p in block.parameters()] for block in module]
        if all(type(block) is type(module[0]) for block in module) and all(s == shapes[0] for s in shapes):
            found[name] = len(module)
    return found
