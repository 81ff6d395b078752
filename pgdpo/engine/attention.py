"""Which backend computes attention, tried before weights are loaded; and how a mask of text's padding reaches it.

Text is trimmed (`Family.trimmed`), so that a mask is there only where prompts of several lengths meet in a forward.
Most backends of diffusers take it as it comes, some raise, and xformers would add ones and zeros of it to the scores:
to attend to padding all but as to the rest.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)

from pgdpo.config import Config
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError, MachineError
from pgdpo.models.family import Family
from pgdpo.models.weights.kept import compute_dtype

TRIAL = (2, 32, 1)  # samples, tokens, heads
PADDING = 12  # tokens of the first sample that are masked
TOLERANCE = 0.1  # of two backends' norms; attending to that padding makes it 0.3 and more
ALIGNED = 8  # elements of a bias that xformers reads at once


def choose_attention(transformer: torch.nn.Module, family: Family, name: str) -> None:
    """Have the transformer use a backend; its attention to text alone, where that has a mask, stays native."""
    route_masks()
    transformer.set_attention_backend(name)
    family.drop_whole_masks(transformer)
    if family.masked_attention is None or name == "native":
        return
    for path, module in transformer.named_modules():
        if path.endswith(f".{family.masked_attention}"):
            module.processor._attention_backend = "native"
    say(f"attention to text, which has a mask, is native; among video tokens it is {name}")


def with_attention(forward: Callable, transformer: torch.nn.Module, family: Family, name: str) -> Callable:
    """`forward` in which `transformer` uses another attention backend; before and after it uses its own."""
    processors = _processors(transformer, family)

    def switched(*args, **kwargs):
        own = [processor._attention_backend for processor in processors]
        try:
            for processor in processors:
                processor._attention_backend = name
            return forward(*args, **kwargs)
        finally:
            for processor, backend in zip(processors, own, strict=True):
                processor._attention_backend = backend

    return switched


def _processors(transformer: torch.nn.Module, family: Family) -> list:
    """The attention processors whose backend is chosen."""
    found = [
        getattr(module, "processor", None)
        for path, module in transformer.named_modules()
        if family.masked_attention is None or not path.endswith(f".{family.masked_attention}")
    ]
    return [processor for processor in found if hasattr(processor, "_attention_backend")]


@functools.cache
def route_masks() -> None:
    """Let xformers add minus infinity where a mask is false. diffusers hands it the mask's ones and zeros to add."""
    backends = _AttentionBackendRegistry._backends
    theirs = backends[AttentionBackendName.XFORMERS]

    @functools.wraps(theirs)
    def attend(query, key, value, attn_mask=None, **options):
        bias = None if attn_mask is None else additive(attn_mask, query.dtype)
        return theirs(query=query, key=key, value=value, attn_mask=bias, **options)

    backends[AttentionBackendName.XFORMERS] = attend


def additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`[..., keys]` of a boolean mask, or of numbers that are added: added to the scores, each row aligned in memory.

    Of `dtype`, so that diffusers expands it over heads and queries without a copy.
    """
    bias = mask.to(dtype)
    if mask.dtype == torch.bool:
        bias = torch.zeros_like(bias).masked_fill(~mask, float("-inf"))
    keys = bias.shape[-1]
    return torch.nn.functional.pad(bias, (0, -keys % ALIGNED))[..., :keys]


def check_attention(config: Config, family: Family, device: torch.device) -> None:
    """Try the attention backends once in the dtype that training will use, the policy's backward too; without weights.

    Raises InputError if diffusers does not know a backend, this model's attention takes none, or one does not keep a
    mask that a forward may need; MachineError if it has no operator on this device.
    """
    route_masks()
    with torch.device("meta"):
        transformer = family.from_architecture(family.architecture())
    dtype = compute_dtype(config)
    shape = (*TRIAL, transformer.config.attention_head_dim)
    query = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    needed = mask_needed(config, family)
    _try_attention("attention", config.model.attention, transformer, query.requires_grad_(), needed)
    if config.model.reference_attention is not None:
        _try_attention(
            "reference_attention", config.model.reference_attention, transformer, query.detach(), needed
        )


def mask_needed(config: Config, family: Family) -> str | None:
    """What brings prompts of several lengths into one forward whose chosen backend then gets a mask; None: nothing."""
    if not family.masks_text or family.masked_attention is not None:
        return None
    sizes = {
        "train.micro_batch_groups": config.train.micro_batch_groups,
        "evaluate.batch": config.evaluate.batch,
    }
    several = [f"{key} is {size}" for key, size in sizes.items() if size > 1]
    return " and ".join(several) or None


def _try_attention(
    key: str,
    name: str,
    transformer: torch.nn.Module,
    query: torch.Tensor,  # [B, tokens, heads, head size]; with a gradient where the backward is wanted
    mask_needed: str | None,
) -> None:
    known = [backend.value for backend in AttentionBackendName]
    if name not in known:
        raise InputError(f"model.{key} is {name!r}; diffusers knows {', '.join(known)}")
    if name == "native":
        return
    if not chooses_backend(transformer):
        raise InputError(
            f"model.{key} is {name!r}: diffusers calls torch's attention in a {type(transformer).__name__}, "
            "whatever the backend; use `native`"
        )
    mask = torch.ones(len(query), 1, 1, query.shape[1], dtype=torch.bool, device=query.device)
    mask[0, ..., -PADDING:] = False
    mend = (
        f"{mask_needed}: prompts of several lengths in one forward need a mask; set 1 there, or use `native`"
    )
    if mask_needed is not None and (reason := _refusal(name, query, mask)):
        raise InputError(f"model.{key} is {name!r}: it takes no mask ({reason}). {mend}")
    try:
        transformer.set_attention_backend(name)
        attend(name, query)
        masked = None if mask_needed is None else attend(name, query, mask)
    except (NotImplementedError, RuntimeError, ValueError, ImportError) as error:
        raise MachineError(
            f"model.{key} is {name!r}: it has no operator for {query.device.type} with {query.dtype}, head size "
            f"{query.shape[-1]}{'' if mask_needed is None else ' and a mask'} here ({_short(error)}); use `native`, or "
            f"another of {', '.join(known)}"
        ) from error
    if masked is not None and (off := difference(masked, attend("native", query, mask))) > TOLERANCE:
        raise InputError(
            f"model.{key} is {name!r}: it attends to padding: under a mask it is {off:.0%} off what `native` gives. "
            f"{mend}"
        )


def chooses_backend(transformer: torch.nn.Module) -> bool:
    """Whether diffusers lets the backend of any of its attention be chosen."""
    return any(
        hasattr(getattr(module, "processor", None), "_attention_backend") for module in transformer.modules()
    )


def _refusal(name: str, query: torch.Tensor, mask: torch.Tensor) -> str | None:
    """Why a backend takes no mask: diffusers says so before it looks for an operator, on any machine."""
    with contextlib.suppress(NotImplementedError, RuntimeError, ImportError, TypeError):
        try:
            attend(name, query.detach(), mask)
        except ValueError as error:
            return _short(error)
    return None


def attend(
    name: str, query: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`query` `[B, tokens, heads, D]` attending to itself, and the gradient of the result's square where it has one."""
    output = dispatch_attention_fn(query, query, query, attn_mask=mask, backend=AttentionBackendName(name))
    if not query.requires_grad:
        return output, None
    return output.detach(), torch.autograd.grad(output.float().square().sum(), query)[0]


def difference(found: tuple, wanted: tuple) -> float:
    """The largest relative difference in norm of `attend`'s results."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, wanted, strict=True) if b is not None]
    off = [((a - b).norm() / b.norm()).nan_to_num(nan=float("inf")) for a, b in pairs]
    return float(max(off))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
