"""What the families' attention processors share: norm and rotation by the ops, attention by diffusers' dispatcher."""

from __future__ import annotations

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from .replace import Ops


class FusedProcessor:
    """An attention processor that calls the ops; each family has a `__call__` of its own."""

    _attention_backend = None  # diffusers sets both on processors
    _parallel_config = None

    def __init__(
        self, ops: Ops | None = None
    ):  # None: diffusers' loader of IP adapters makes processors anew
        self.ops = Ops.all() if ops is None else ops

    def normed(
        self,
        attn: nn.Module,
        query: torch.Tensor,  # [B, N, D]
        key: torch.Tensor,
        norm: str,
        norms: tuple[nn.Module | None, nn.Module | None],  # of q and of k; None: they are not normed
        tables: tuple[torch.Tensor, torch.Tensor] | None,
        **turned: int | str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`qk_norm_rope` with the weights of `norms`; `turned` is its rope, rope_start, rope_len, and other heads."""
        norm_q, norm_k = norms
        own = {"norm": "none"}
        if norm_q is not None:
            own = {"norm": norm, "eps": norm_q.eps, "q_weight": norm_q.weight, "k_weight": norm_k.weight}
            own |= {"q_bias": getattr(norm_q, "bias", None), "k_bias": getattr(norm_k, "bias", None)}
        cos, sin = tables or (None, None)
        turned = {"num_heads": heads_of(attn, query)} | turned
        return self.ops.qk_norm_rope(query, key, cos=cos, sin=sin, **own, **turned)

    def normed_alone(
        self,
        attn: nn.Module,
        x: torch.Tensor,  # [B, N, D]
        norm: str,
        layer: nn.Module,
        tables: tuple[torch.Tensor, torch.Tensor] | None,
        **turned: int | str,
    ) -> torch.Tensor:
        """`norm_rope` of queries or of keys with the weights of `layer`; `turned` as of `normed`."""
        own = {"norm": norm, "eps": layer.eps, "weight": layer.weight, "bias": getattr(layer, "bias", None)}
        cos, sin = tables or (None, None)
        turned = {"num_heads": heads_of(attn, x)} | turned
        return self.ops.norm_rope(x, cos=cos, sin=sin, **own, **turned)

    def attend(
        self,
        attn: nn.Module,
        query: torch.Tensor,  # [B, N, D]
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention in heads by the backend that diffusers has set, `[B, N, D]` in the query's dtype."""
        heads = (x.unflatten(2, (heads_of(attn, query), -1)) for x in (query, key, value))
        hidden_states = dispatch_attention_fn(
            *heads,
            attn_mask=mask,
            dropout_p=0.0,
            is_causal=False,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return hidden_states.flatten(2, 3).to(query.dtype)


def heads_of(attn: nn.Module, query: torch.Tensor) -> int:
    """The heads of this rank: diffusers' tensor parallelism cuts the projections and leaves `attn.heads` as it was."""
    return attn.heads * query.shape[2] // getattr(attn, "inner_dim", query.shape[2])


def mask_of_heads(
    attn: nn.Module, mask: torch.Tensor | None, hidden_states: torch.Tensor
) -> torch.Tensor | None:
    """The mask `[B, heads, 1 or N, N]`, as diffusers' processors make it from the one that they are given."""
    if mask is None:
        return None
    batch, tokens, _ = hidden_states.shape
    mask = attn.prepare_attention_mask(mask, tokens, batch)
    return mask.view(batch, attn.heads, -1, mask.shape[-1])
