"""Ranks that share picture and sound against one rank that has both: diffusers' transformer of LTX-2, every flag of it.

`measure` runs on every rank, and returns what `shared_tokens.compared` finds of each case.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from diffusers import LTX2VideoTransformer3DModel

from pgdpo.config import ModelConfig
from pgdpo.engine.memory import save_memory
from pgdpo.engine.ulysses import Stream, Ulysses, share_tokens
from pgdpo.models.families.ltx2 import LTX2
from pgdpo_kernels import apply_to, set_backend
from tests.engine.shared_tokens import compared

BATCH, CHANNELS, CAPTION, WORDS = 2, 8, 24, 6
HEADS = 4
SIZES = {  # latent frames, height and width of the picture; tokens of the sound
    "usual": ((3, 2, 3), 7),
    "long": ((1, 2, 2), 9),  # more sound than picture
    "short": ((3, 1, 3), 3),
    "one": ((3, 2, 3), 1),
}
DEPTH, WIDTH, AUDIO_WIDTH = 2, HEADS * 12, HEADS * 8
WIDTHS = {  # of each attention, in all blocks
    "attn1": DEPTH * WIDTH,
    **dict.fromkeys(("audio_attn1", "audio_to_video_attn", "video_to_audio_attn"), DEPTH * AUDIO_WIDTH),
}
PLAIN = {}
GATED = {"gated_attn": True, "audio_gated_attn": True}
LATER = {  # of 2.3
    **GATED,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "perturbed_attn": True,
    "use_prompt_embeddings": False,
}
LAST = {**LATER, "use_prompt_adaln_single": False, "ff_bias": False}  # of 2.5


class Case(NamedTuple):
    rope: str
    flags: dict  # of the transformer
    size: str
    called: dict = {}  # noqa: RUF012
    held: dict = {}  # noqa: RUF012
    fused: bool = False


FULL, SELECTIVE = {"gradient_checkpointing": "full"}, {"gradient_checkpointing": "selective"}
CASES = {
    "t2v": Case("interleaved", PLAIN, "usual"),
    "i2v": Case("split", PLAIN, "usual", {"image": True}, FULL),
    "later": Case("split", LATER, "long", {"cross": True}, SELECTIVE),
    "last": Case("split", LAST, "short", {"image": True, "cross": True}, {"compile": "aot_eager"}),
    "gated": Case("interleaved", GATED, "long", {"image": True}, SELECTIVE, fused=True),
    "fused": Case("split", LATER, "short", {"cross": True}, FULL, fused=True),
    "one": Case("split", GATED, "one", {"image": True}, FULL),
    "silent": Case("interleaved", PLAIN, "one", {"isolated": True}, FULL),
    "apart": Case("split", LATER, "usual", {"isolated": True, "image": True}),
}


def tokens(size: str) -> tuple[int, int]:
    """Of picture and sound."""
    latents, sound = SIZES[size]
    return math.prod(latents), sound


def transformer(rope: str, flags: dict) -> torch.nn.Module:
    """Two blocks with weights that matter."""
    torch.manual_seed(0)
    return LTX2VideoTransformer3DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=HEADS, attention_head_dim=12,
        cross_attention_dim=WIDTH, audio_in_channels=CHANNELS, audio_out_channels=CHANNELS,
        audio_num_attention_heads=HEADS, audio_attention_head_dim=8, audio_cross_attention_dim=AUDIO_WIDTH,
        num_layers=DEPTH, caption_channels=CAPTION, rope_type=rope, **flags,
    ).train()  # fmt: skip


def inputs(size: str, flags: dict, *, image=False, cross=False, isolated=False) -> dict:
    """What a transformer of these flags is called with; the first frame's tokens are given where it starts from one."""
    (frames, height, width), audio = SIZES[size]
    count = math.prod((frames, height, width))
    sigma = torch.tensor([0.2, 0.7]) * 1000
    text = flags.get("use_prompt_embeddings", True)
    widths = (CAPTION, CAPTION) if text else (WIDTH, AUDIO_WIDTH)
    kept = torch.arange(WORDS) < torch.tensor([[3], [WORDS]])
    timestep = sigma[:, None] * (torch.arange(count) >= height * width) if image else sigma
    return {
        "hidden_states": torch.randn(BATCH, count, CHANNELS),
        "audio_hidden_states": torch.randn(BATCH, audio, CHANNELS),
        "encoder_hidden_states": torch.randn(BATCH, WORDS, widths[0]),
        "audio_encoder_hidden_states": torch.randn(BATCH, WORDS, widths[1]),
        "timestep": timestep,
        "audio_timestep": sigma,
        "sigma": sigma,
        "encoder_attention_mask": kept.long(),
        "audio_encoder_attention_mask": kept.long(),
        "num_frames": frames,
        "height": height,
        "width": width,
        "audio_num_frames": audio,
        "use_cross_timestep": cross,
        "isolate_modalities": isolated,
        "return_dict": False,
    }


def differences(case: Case) -> dict:
    whole = transformer(case.rope, case.flags)
    given = inputs(case.size, case.flags, **case.called)
    shared = copy.deepcopy(whole)
    if case.fused:
        apply_to(shared, strict=True)
    save_memory(shared, ModelConfig(path="tiny", **case.held))
    share_tokens(shared, LTX2.sharing, dist.group.WORLD)

    def predict(model) -> torch.Tensor:
        video, audio = model(**given)
        return torch.cat([video.flatten(1), audio.flatten(1)], dim=1)

    sent = sent_in_blocks(lambda: predict(shared))
    target = torch.randn(BATCH, sum(given[f"{which}hidden_states"][0].numel() for which in ("", "audio_")))
    return compared(whole, shared, LTX2.sharing, predict, target) | {"sent": sent}


@torch.no_grad()
def sent_in_blocks(forward: Callable[[], object]) -> float:
    """Elements of one sample that a rank sends to others around attention in a forward, on average over the ranks."""
    counted = torch.zeros(())
    exchange, attend = Stream.exchange, Ulysses.attend

    def counting(stream, parts, shapes):
        inside = len(within) > 0
        counted.add_(inside * sum(part.numel() for rank, part in enumerate(parts) if rank != stream.rank))
        return exchange(stream, parts, shapes)

    def attending(ulysses, *given, **options):
        within.append(ulysses)
        try:
            return attend(ulysses, *given, **options)
        finally:
            within.pop()

    within: list[Ulysses] = []
    with mock.patch.object(Stream, "exchange", counting), mock.patch.object(Ulysses, "attend", attending):
        forward()
    dist.all_reduce(counted)
    return float(counted) / dist.get_world_size() / BATCH


def measure(names: list[str]) -> dict[str, dict]:
    dist.init_process_group("gloo")
    set_backend("eager")  # the patched modules' code, with eager maths
    return {name: differences(CASES[name]) for name in names}
