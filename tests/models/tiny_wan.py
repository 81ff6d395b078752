"""The kinds of Wan pipelines with one-digit layers, saved to disk: every part of its real class, at random."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.models.tiny_pipelines import WORDS, tokenizer

BOUNDARY = 0.875


def save_tiny(kind: str, folder: Path) -> Path:
    """A pipeline of that kind; its channels, parts and settings are those of the published one, only small."""
    from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline

    torch.manual_seed(0)
    fine = kind == "2.2 ti2v 5b"
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, num_train_timesteps=1000
    )
    parts = {
        "tokenizer": tokenizer(),
        "text_encoder": umt5().eval(),
        "vae": vae(fine),
        "scheduler": scheduler,
        "transformer": transformer(kind),
    }
    if "2.1" in kind and concatenates(kind):
        parts |= clip()
    if "a14b" in kind:
        parts |= {"transformer_2": transformer(kind), "boundary_ratio": BOUNDARY}
    if fine:
        parts["expand_timesteps"] = True
    pipeline = WanImageToVideoPipeline if concatenates(kind) else WanPipeline
    pipeline(**parts).save_pretrained(folder)
    return folder


def concatenates(kind: str) -> bool:
    """Whether pictures stand behind the noisy latents as channels."""
    return kind != "2.2 ti2v 5b" and ("i2v" in kind or "flf2v" in kind)


def transformer(kind: str):
    """Of first and last frame with learned positions that are no zeros, as fresh ones are."""
    from diffusers import WanTransformer3DModel

    concatenated = concatenates(kind)
    image = {"image_dim": 8, "added_kv_proj_dim": 32} if "2.1" in kind and concatenated else {}
    if "flf2v" in kind:
        image["pos_embed_seq_len"] = 2 * 5  # tokens of `clip`
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=12 if concatenated else 4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
        **image,
    )
    if "flf2v" in kind:
        torch.nn.init.normal_(model.condition_embedder.image_embedder.pos_embed)
    return model


def vae(fine: bool):
    """`fine`: with Wan 2.2 5B's residual layout, whose latents are half as wide and high."""
    from diffusers import AutoencoderKLWan

    pixels = {"in_channels": 12, "out_channels": 12, "patch_size": 2} if fine else {}
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 1.5, 2.0, 1.0],
        is_residual=fine,
        scale_factor_spatial=16 if fine else 8,
        **pixels,
    )


def umt5():
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0
        )
    )


def clip() -> dict:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    return {
        "image_encoder": CLIPVisionModel(config).eval(),
        "image_processor": CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
    }
