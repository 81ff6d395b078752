"""A clip's tokens shared by a process group (DeepSpeed-Ulysses, arXiv 2309.14509), for every model family alike.

Before the first block each rank takes its part of the video's tokens, and of what else goes by tokens (the family's
`TokenSharing` says what). Around attention over all tokens ranks trade tokens for heads: inside, each has all tokens of
its heads; outside, all heads of its tokens. Text that attends together with the video stays whole on every rank, so
that masks keep their shape; cross-attention from a rank's tokens to the whole text needs no exchange. The last
projection's outputs are gathered: every rank has the whole prediction, and computes errors and loss as one rank would.

Each exchange is an all-to-all, and its gradient the same exchange backwards. Summed over a process group of n the
gradients are those of its n equal losses. DeepSpeed sees plain data parallelism and averages over all ranks, at every
ZeRO stage: that is the mean over process groups of one loss's gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from pgdpo.models.protocols import TokenSharing


def share_tokens(
    transformer: torch.nn.Module, sharing: TokenSharing, process_group: dist.ProcessGroup | None
) -> None:
    """Have the transformer compute this rank's part of the tokens; its inputs and outputs stay whole.

    `process_group`: the ranks that have a clip together; None where this rank has it alone.
    """
    if process_group is None:
        return
    route_attention()
    ulysses = Ulysses(process_group, text_first=sharing.text_first)
    blocks = [block for name in sharing.blocks for block in transformer.get_submodule(name)]
    for block in blocks:
        attention = block.get_submodule(sharing.attention)
        if sharing.processor is not None and not hasattr(attention.processor, "_parallel_config"):
            attention.set_processor(sharing.processor())
        attention.processor._parallel_config = ulysses

    def split_arguments(module, args: tuple, kwargs: dict) -> tuple:
        cut = {name: ulysses.part(kwargs[name], dim) for name, dim in sharing.arguments.items()}
        return args, {**kwargs, **cut}

    def split_hidden_states(module, args: tuple, kwargs: dict) -> tuple:
        if args:  # as gradient checkpointing calls a block
            return (ulysses.part(args[0], 1), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": ulysses.part(kwargs["hidden_states"], 1)}

    def split_first_frame(module, args: tuple) -> tuple:
        at = sharing.first_frame
        return (*args[:at], ulysses.part_of_first(args[at]), *args[at + 1 :])

    if sharing.first_frame is not None:
        for block in blocks:
            block.register_forward_pre_hook(split_first_frame)
    transformer.register_forward_pre_hook(split_arguments, with_kwargs=True)
    blocks[0].register_forward_pre_hook(split_hidden_states, with_kwargs=True)
    if sharing.rope_dim is not None:
        transformer.rope.register_forward_hook(lambda *call: ulysses.part(call[-1], sharing.rope_dim))
    transformer.proj_out.register_forward_hook(lambda *call: ulysses.gather(call[-1]))


@functools.cache
def route_attention() -> None:
    """Let every attention backend of diffusers exchange tokens where a processor's `_parallel_config` is a `Ulysses`.

    diffusers' own context parallelism asks each backend for a backward of its own, splits the text too, and has no
    masks by head: few backends, and Wan alone.
    """
    backends = _AttentionBackendRegistry._backends
    for name, backend in backends.items():
        backends[name] = _routed(backend)


def _routed(backend: Callable) -> Callable:
    @functools.wraps(backend)
    def attend(*, _parallel_config=None, **inputs):
        if isinstance(_parallel_config, Ulysses):
            return _parallel_config.attend(backend, **inputs)
        return backend(_parallel_config=_parallel_config, **inputs)

    return attend


class Ulysses:
    """One rank's part of the clips that a process group has together.

    `text_first`: where text and video attend together, the text's tokens stand before the video's, else behind.
    """

    def __init__(self, process_group: dist.ProcessGroup, *, text_first: bool = False) -> None:
        self.process_group = process_group
        self.rank, self.degree = dist.get_rank(process_group), dist.get_world_size(process_group)
        self.text_first = text_first
        self.sizes: list[int] = []  # video tokens of each rank, of the clips that are in the transformer now

    def part(self, value, dim: int):
        """This rank's part of a tensor with all video tokens on `dim`, or of a tuple of them.

        None, and a tensor without that dim or with one entry there, are for all tokens.
        """
        if isinstance(value, tuple):
            return tuple(self.part(tensor, dim) for tensor in value)
        if value is None or value.dim() <= dim or value.shape[dim] == 1:
            return value
        parts = value.tensor_split(self.degree, dim)
        self.sizes = [part.shape[dim] for part in parts]
        return parts[self.rank]

    def part_of_first(self, count: int) -> int:
        """How many of the first `count` video tokens this rank has."""
        return min(max(count - sum(self.sizes[: self.rank]), 0), self.sizes[self.rank])

    def gather(self, output: torch.Tensor) -> torch.Tensor:
        """`[B, this rank's tokens, C]` -> `[B, all tokens, C]`."""
        batch, _, channels = output.shape
        shapes = [(batch, size, channels) for size in self.sizes]
        return torch.cat(self._exchange([output] * self.degree, shapes), dim=1)

    def attend(
        self,
        attention: Callable,
        query: torch.Tensor,  # [B, this rank's video tokens and all text tokens, heads, D], as key and value
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,  # over all tokens, the same for all heads
        **options,
    ) -> torch.Tensor:
        """`attention` of all tokens, shaped as `query`."""
        query, key, value = (self._to_heads(tensor) for tensor in (query, key, value))
        return self._to_tokens(attention(query=query, key=key, value=value, attn_mask=attn_mask, **options))

    def _to_heads(self, tensor: torch.Tensor) -> torch.Tensor:
        """All heads of this rank's tokens -> this rank's heads of all tokens."""
        text, video = self._text_and_video(tensor, self.sizes[self.rank])
        parts = video.chunk(self.degree, dim=2)
        batch, _, heads, width = parts[0].shape
        shapes = [(batch, size, heads, width) for size in self.sizes]
        video = torch.cat(self._exchange(parts, shapes), dim=1)
        return self._joined(text.chunk(self.degree, dim=2)[self.rank], video)

    def _to_tokens(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's heads of all tokens -> all heads of this rank's tokens, text included."""
        text, video = self._text_and_video(tensor, sum(self.sizes))
        parts = [self._joined(text, part) for part in video.split(self.sizes, dim=1)]
        shapes = [parts[self.rank].shape] * self.degree
        return torch.cat(self._exchange(parts, shapes), dim=2)

    def _text_and_video(self, tensor: torch.Tensor, video: int) -> tuple[torch.Tensor, torch.Tensor]:
        text = tensor.shape[1] - video
        if self.text_first:
            return tensor[:, :text], tensor[:, text:]
        return tensor[:, video:], tensor[:, :video]

    def _joined(self, text: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        return torch.cat([text, video] if self.text_first else [video, text], dim=1)

    def _exchange(self, parts: Sequence[torch.Tensor], shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """`parts[r]` goes to rank r of the process group; what comes from rank r has `shapes[r]`."""
        sent = [part.numel() for part in parts]
        received = [math.prod(shape) for shape in shapes]
        flat = AllToAll.apply(
            torch.cat([part.flatten() for part in parts]), sent, received, self.process_group
        )
        return [part.view(shape) for part, shape in zip(flat.split(received), shapes, strict=True)]


class AllToAll(torch.autograd.Function):
    """Elements to and from every rank of a process group; the gradients go back as they came."""

    @staticmethod
    def forward(
        ctx, flat: torch.Tensor, sent: list[int], received: list[int], process_group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.back = received, sent, process_group
        output = flat.new_empty(sum(received))
        dist.all_to_all_single(output, flat, received, sent, group=process_group)
        return output

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple:
        return AllToAll.apply(gradient.contiguous(), *ctx.back), None, None, None
