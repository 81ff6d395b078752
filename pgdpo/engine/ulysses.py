"""A clip's tokens shared by a process group (DeepSpeed-Ulysses, arXiv 2309.14509), for every model family alike.

Before the first block each rank takes its part of the video's tokens, of a sound's beside it, and of what else goes by
tokens (the family's `TokenSharing` says what). Around attention over all tokens ranks trade tokens for heads: inside,
each has all tokens of its heads; outside, all heads of its tokens. Text that attends together with the video stays
whole on every rank, so that masks keep their shape; cross-attention from a rank's tokens to the whole text needs no
exchange. The last projections' outputs are gathered: every rank has the whole prediction, and computes errors and loss
as one rank would.

Parts differ by a token where the ranks do not divide their number, so that nothing is padded. A stream with fewer
tokens than ranks (the sound of a picture, or what stands for one) stays whole on every rank, as text does.

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

from pgdpo.models.protocols import Tokens, TokenSharing


def share_tokens(
    transformer: torch.nn.Module, sharing: TokenSharing, process_group: dist.ProcessGroup | None
) -> None:
    """Have the transformer compute this rank's part of the tokens; its inputs and outputs stay whole.

    `process_group`: the ranks that have a clip together; None where this rank has it alone.
    """
    if process_group is None:
        return
    route_attention()
    blocks = [block for name in sharing.blocks for block in transformer.get_submodule(name)]
    streams = {name: Stream(process_group) for name in sharing.streams}
    for attention, (queries, keys) in sharing.attentions.items():
        exchange = Ulysses(streams[queries], streams[keys], text_first=sharing.text_first)
        for block in blocks:
            _exchange_in(block.get_submodule(attention), exchange, sharing.processor)
    if sharing.first_frame is not None:
        _split_first_frame(blocks, sharing.first_frame, *streams.values())
    for place, (name, tokens) in enumerate(sharing.streams.items()):
        _split(transformer, blocks[0], tokens, place, streams[name])


def _exchange_in(attention: torch.nn.Module, exchange: Ulysses, stand_in: type | None) -> None:
    if stand_in is not None and not hasattr(attention.processor, "_parallel_config"):
        attention.set_processor(stand_in())
    attention.processor._parallel_config = exchange


def _split_first_frame(blocks: Sequence[torch.nn.Module], at: int, stream: Stream) -> None:
    """Tell each block how many of the first frame's tokens are this rank's."""

    def split_first_frame(module, args: tuple) -> tuple:
        return (*args[:at], stream.part_of_first(args[at]), *args[at + 1 :])

    for block in blocks:
        block.register_forward_pre_hook(split_first_frame)


def _split(
    transformer: torch.nn.Module, first: torch.nn.Module, tokens: Tokens, place: int, stream: Stream
) -> None:
    """Split what goes by a stream's tokens on its way to the blocks; gather what comes of it. `place`: of its hidden
    states among a block's arguments."""

    def split_arguments(module, args: tuple, kwargs: dict) -> tuple:
        given = {name: dim for name, dim in tokens.arguments.items() if name in kwargs}
        return args, {**kwargs, **{name: stream.part(kwargs[name], dim) for name, dim in given.items()}}

    def split_hidden_states(module, args: tuple, kwargs: dict) -> tuple:
        if args:  # as gradient checkpointing calls a block
            return (*args[:place], stream.part(args[place], 1), *args[place + 1 :]), kwargs
        return args, {**kwargs, tokens.hidden_states: stream.part(kwargs[tokens.hidden_states], 1)}

    transformer.register_forward_pre_hook(split_arguments, with_kwargs=True)
    first.register_forward_pre_hook(split_hidden_states, with_kwargs=True)
    for name, dim in tokens.ropes.items():
        transformer.get_submodule(name).register_forward_hook(
            lambda *call, dim=dim: stream.part(call[-1], dim)
        )
    transformer.get_submodule(tokens.output).register_forward_hook(lambda *call: stream.gather(call[-1]))


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


class Stream:
    """One rank's part of the tokens of one kind, of the clips that a process group has together."""

    def __init__(self, process_group: dist.ProcessGroup) -> None:
        self.process_group = process_group
        self.rank, self.degree = dist.get_rank(process_group), dist.get_world_size(process_group)
        # Each rank's, of the clips that are in the transformer now; of tokens that all ranks have whole, none.
        self.sizes: list[int] = []

    @property
    def own(self) -> int:
        return self.sizes[self.rank]

    @property
    def count(self) -> int:
        return sum(self.sizes)

    def part(self, value, dim: int):
        """This rank's part of a tensor with all tokens on `dim`, or of a tuple of them.

        Whole are None, a tensor without that dim, and one with fewer entries there than ranks: one is for all tokens.
        """
        if isinstance(value, tuple):
            return tuple(self.part(tensor, dim) for tensor in value)
        if value is None or value.dim() <= dim:
            return value
        if value.shape[dim] < self.degree:
            self.sizes = [0] * self.degree
            return value
        parts = value.tensor_split(self.degree, dim)
        self.sizes = [part.shape[dim] for part in parts]
        return parts[self.rank]

    def part_of_first(self, count: int) -> int:
        """How many of the first `count` tokens this rank has."""
        return min(max(count - sum(self.sizes[: self.rank]), 0), self.own)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """`[B, this rank's tokens, ...]` -> `[B, all tokens, ...]`."""
        if not self.count:
            return tensor
        batch, _, *rest = tensor.shape
        shapes = [(batch, size, *rest) for size in self.sizes]
        return torch.cat(self.exchange([tensor] * self.degree, shapes), dim=1)

    def exchange(self, parts: Sequence[torch.Tensor], shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """`parts[r]` goes to rank r of the process group; what comes from rank r has `shapes[r]`."""
        sent = [part.numel() for part in parts]
        received = [math.prod(shape) for shape in shapes]
        flat = AllToAll.apply(
            torch.cat([part.flatten() for part in parts]), sent, received, self.process_group
        )
        return [part.view(shape) for part, shape in zip(flat.split(received), shapes, strict=True)]


class Ulysses:
    """Attention of one stream's tokens to those of another, or to each other: `queries` and `keys` are then one.

    `text_first`: where text and video attend together, the text's tokens stand before the video's, else behind.
    """

    def __init__(self, queries: Stream, keys: Stream, *, text_first: bool = False) -> None:
        self.queries, self.keys = queries, keys
        self.text_first = text_first

    def attend(
        self,
        attention: Callable,
        query: torch.Tensor,  # [B, this rank's tokens and all text tokens, heads, D], as key and value
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,  # over all tokens, the same for all heads
        **options,
    ) -> torch.Tensor:
        """`attention` of all tokens, shaped as `query`."""
        if self.queries is not self.keys and keys_are_few(
            self.queries.count, self.keys.count, self.keys.degree
        ):
            key, value = self.keys.gather(key), self.keys.gather(value)
            return attention(query=query, key=key, value=value, attn_mask=attn_mask, **options)
        query = self._to_heads(query, self.queries)
        key, value = self._to_heads(key, self.keys), self._to_heads(value, self.keys)
        return self._to_tokens(attention(query=query, key=key, value=value, attn_mask=attn_mask, **options))

    def _to_heads(self, tensor: torch.Tensor, stream: Stream) -> torch.Tensor:
        """All heads of this rank's tokens -> this rank's heads of all tokens."""
        text, shared = self._text_and_shared(tensor, stream.own)
        parts = shared.chunk(stream.degree, dim=2)
        batch, _, heads, width = parts[0].shape
        shapes = [(batch, size, heads, width) for size in stream.sizes]
        shared = torch.cat(stream.exchange(parts, shapes), dim=1)
        return self._joined(text.chunk(stream.degree, dim=2)[stream.rank], shared)

    def _to_tokens(self, tensor: torch.Tensor) -> torch.Tensor:
        """This rank's heads of all tokens -> all heads of this rank's tokens, text included."""
        stream = self.queries
        text, shared = self._text_and_shared(tensor, stream.count)
        parts = [self._joined(text, part) for part in shared.split(stream.sizes, dim=1)]
        shapes = [parts[stream.rank].shape] * stream.degree
        return torch.cat(stream.exchange(parts, shapes), dim=2)

    def _text_and_shared(self, tensor: torch.Tensor, shared: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What every rank has whole, and `shared` tokens."""
        text = tensor.shape[1] - shared
        if self.text_first:
            return tensor[:, :text], tensor[:, text:]
        return tensor[:, shared:], tensor[:, :shared]

    def _joined(self, text: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
        return torch.cat([text, shared] if self.text_first else [shared, text], dim=1)


def keys_are_few(queries: int, keys: int, degree: int) -> bool:
    """Whether attention across streams, of so many tokens, sends less if every rank has all keys and values, and asks
    for its own tokens alone.

    Of n ranks, with Q and K tokens, each then sends 2 K / n of them to n - 1 others; to trade tokens for heads it sends
    2 (Q + K) / n^2 to each: queries, keys, values and outputs. Of a picture that listens to its sound (6,144 tokens to
    126, in LTX-2's five seconds) the former is a sixth of the latter on eight ranks.
    """
    return degree * keys <= queries + keys


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
