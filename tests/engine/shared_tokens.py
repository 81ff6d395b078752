"""Ranks that share a clip's tokens against the same model on one rank: five steps of every family, without a trainer.

`measure` runs on every rank. It returns for each case the largest relative difference of the five losses, of the
prediction, and of any weight's first gradient, and what share of the tokens the last block of this rank had.
"""

import copy

import torch
import torch.distributed as dist
from diffusers import (
    CogVideoXTransformer3DModel,
    HunyuanVideoTransformer3DModel,
    LTXVideoTransformer3DModel,
    WanTransformer3DModel,
)

from pgdpo.engine.memory import save_memory
from pgdpo.engine.ulysses import share_tokens
from pgdpo.models.families.cogvideox import CogVideoX
from pgdpo.models.families.hunyuan_video import HunyuanVideo
from pgdpo.models.families.ltx import LTX
from pgdpo.models.families.wan import Wan
from pgdpo_kernels import apply_to, set_backend

STEPS = 5
HEADS = {"num_attention_heads": 4, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
WIDTH = 48


def wan(size, *, per_token: bool = False):
    model = WanTransformer3DModel(
        **HEADS, text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2, rope_max_seq_len=16, patch_size=(1, 1, 1)
    )
    tokens = torch.Size(size).numel()
    inputs = {
        "hidden_states": torch.randn(2, 4, *size),
        "timestep": torch.rand(2, tokens) * 1000 if per_token else torch.tensor([100.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 5, 8),
    }
    return Wan, model, inputs


def wan_first_last(size):
    """With the states of two pictures, each of three tokens; the processor takes 512 of text for granted."""
    attended = {"image_dim": 8, "added_kv_proj_dim": WIDTH, "pos_embed_seq_len": 6}
    model = WanTransformer3DModel(
        **HEADS,
        **attended,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=16,
        patch_size=(1, 1, 1),
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, *size),
        "timestep": torch.tensor([100.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 512, 8),
        "encoder_hidden_states_image": torch.randn(4, 3, 8),
    }
    return Wan, model, inputs


def hunyuan_video(size, **options):
    layers = {"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1, "patch_size": 1}
    text = {"text_embed_dim": 8, "pooled_projection_dim": 8, "rope_axes_dim": (4, 4, 4)}
    inputs = {
        "hidden_states": torch.randn(2, 4, *size),
        "timestep": torch.tensor([100.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 5, 8),
        "encoder_attention_mask": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]),
        "pooled_projections": torch.randn(2, 8),
        "guidance": torch.tensor([6000.0, 6000.0]),
    }
    return HunyuanVideo, HunyuanVideoTransformer3DModel(**HEADS, **layers, **text, **options), inputs


def cogvideox(size, *, rotary: bool = True, newer: bool = False):
    """`newer`: as CogVideoX 1.5 image-to-video, of `size` in tokens."""
    frames, height, width = size
    shape = {"sample_frames": frames * 4 - 3, "sample_height": height, "sample_width": width, "patch_size": 1}
    text = {"text_embed_dim": 8, "max_text_seq_length": 5, "use_rotary_positional_embeddings": rotary}
    tables = torch.randn(2, torch.Size(size).numel(), HEADS["attention_head_dim"]).unbind()
    inputs = {
        "hidden_states": torch.randn(2, frames, 4, height, width),
        "encoder_hidden_states": torch.randn(2, 5, 8),
        "timestep": torch.tensor([100, 700]),
        "image_rotary_emb": tuple(tables) if rotary else None,
    }
    if newer:
        inputs |= {"hidden_states": torch.randn(2, 2 * frames, 8, height, width), "ofs": torch.tensor([2.0])}
        shape |= {"patch_size_t": 2, "ofs_embed_dim": 8, "in_channels": 8}
    model = CogVideoXTransformer3DModel(**HEADS | shape, **text, time_embed_dim=8, num_layers=2)
    return CogVideoX, model, inputs


def ltx(size):
    frames, height, width = size
    model = LTXVideoTransformer3DModel(**HEADS, cross_attention_dim=WIDTH, num_layers=2, caption_channels=8)
    inputs = {
        "hidden_states": torch.randn(2, torch.Size(size).numel(), 4),
        "encoder_hidden_states": torch.randn(2, 5, 8),
        "timestep": torch.tensor([100.0, 700.0]),
        "encoder_attention_mask": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (4 / 25, 32, 32),
    }
    return LTX, model, inputs


def ltx_conditions(tokens: int, *, pictures: bool):
    """As LTXConditionPipeline calls it: with positions, and a timestep of each token where pictures are among them."""
    _, model, inputs = ltx((1, 1, tokens))
    for name in ("num_frames", "height", "width", "rope_interpolation_scale"):
        del inputs[name]
    inputs["timestep"] = torch.rand(2, tokens if pictures else 1) * 1000
    inputs["video_coords"] = torch.rand(2, 3, tokens) * 100
    return LTX, model, inputs


EVEN, UNEVEN = (2, 3, 4), (3, 3, 5)  # latent frames, rows, columns: 24 and 45 tokens
# name -> (model and inputs, model settings, fused ops)
CASES = {
    "wan uneven": (lambda: wan(UNEVEN), {"gradient_checkpointing": "full"}, False),
    "wan per token": (lambda: wan(UNEVEN, per_token=True), {}, True),
    "wan selective": (lambda: wan(EVEN), {"gradient_checkpointing": "selective"}, True),
    "wan compiled": (lambda: wan(EVEN), {"compile": "aot_eager"}, False),
    "wan first and last frame": (
        lambda: wan_first_last(UNEVEN),
        {"gradient_checkpointing": "selective"},
        True,
    ),
    "hunyuan_video uneven": (lambda: hunyuan_video(UNEVEN), {"gradient_checkpointing": "full"}, True),
    "hunyuan_video selective": (
        lambda: hunyuan_video(EVEN),
        {"gradient_checkpointing": "selective"},
        False,
    ),
    # The first frame's tokens, 15 of 45, are the first rank's; and all 40 of them, those of both.
    "hunyuan_video token_replace": (
        lambda: hunyuan_video(UNEVEN, image_condition_type="token_replace"),
        {"gradient_checkpointing": "full"},
        True,
    ),
    "hunyuan_video token_replace one frame": (
        lambda: hunyuan_video((1, 5, 8), image_condition_type="token_replace"),
        {"compile": "aot_eager"},
        False,
    ),
    "cogvideox": (lambda: cogvideox(EVEN), {}, False),
    "cogvideox 2b": (lambda: cogvideox(UNEVEN, rotary=False), {"gradient_checkpointing": "full"}, False),
    "cogvideox uneven": (lambda: cogvideox(UNEVEN), {"gradient_checkpointing": "selective"}, True),
    "cogvideox 1.5 i2v": (lambda: cogvideox(UNEVEN, newer=True), {}, True),
    "ltx uneven": (lambda: ltx(UNEVEN), {}, True),
    "ltx selective": (lambda: ltx(EVEN), {"gradient_checkpointing": "selective"}, False),
    "ltx pictures": (lambda: ltx_conditions(45, pictures=True), {}, True),
    "ltx one timestep": (lambda: ltx_conditions(24, pictures=False), {}, False),
}


def steps(model, inputs, target) -> tuple[list[float], torch.Tensor, dict[str, torch.Tensor]]:
    """(losses, first prediction, first gradients); gradients are averaged over all ranks, as DeepSpeed does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, first = [], None
    for _ in range(STEPS):
        prediction = model(**inputs, return_dict=False)[0]
        errors = (prediction - target).square().flatten(1).mean(1)
        loss = -torch.nn.functional.logsigmoid(errors[1] - errors[0])
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is None:  # of the last block's text: nothing comes of it
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
        first = first or (
            prediction.detach(),
            {name: parameter.grad.clone() for name, parameter in model.named_parameters()},
        )
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, *first


def tokens_in_last_block(model, sharing) -> list[int]:
    """A list that fills with the video tokens that the last block is given."""
    counts = []
    last = model.get_submodule(sharing.blocks[-1])[-1]
    last.get_submodule(sharing.attention).register_forward_pre_hook(
        lambda module, args, kwargs: counts.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    return counts


def differences(case: str) -> dict[str, float]:
    make, settings, fused = CASES[case]
    torch.manual_seed(0)
    family, whole, inputs = make()
    shared = copy.deepcopy(whole)
    target = torch.randn_like(whole(**inputs, return_dict=False)[0])
    if fused:
        apply_to(shared, strict=True)
    save_memory(shared, Wan.settings(path="toy", **settings))
    share_tokens(shared, family.sharing, dist.group.WORLD)
    counts = [tokens_in_last_block(model, family.sharing) for model in (whole, shared)]
    losses, prediction, gradients = steps(whole, inputs, target)
    found, predicted, theirs = steps(shared, inputs, target)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    return {
        "share": counts[1][0] / counts[0][0],
        "loss": max(abs(a - b) / a for a, b in zip(losses, found, strict=True)),
        "learned": abs(losses[-1] - losses[0]) / losses[0],
        "prediction": float((prediction - predicted).abs().max() / prediction.abs().max()),
        # a weight whose gradient is nothing but rounding is measured by the largest one
        "gradient": max(
            float((theirs[n] - g).abs().max() / max(g.abs().max(), 1e-3 * largest))
            for n, g in gradients.items()
        ),
    }


def measure(cases: list[str]) -> dict[str, dict[str, float]]:
    """Differences by case; of all cases where none is named."""
    dist.init_process_group("gloo")
    set_backend("eager")  # the patched modules' code, with eager maths
    return {case: differences(case) for case in cases or CASES}
