"""Tiny configurations and inputs of the other image transformers, for `tiny_models.build`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

LLM, PICTURE = 3, 2  # of Ideogram 4's tokens


def lumina2(ragged=False):
    config = dict(sample_size=4, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1)
    config |= dict(num_attention_heads=3, num_kv_heads=1, multiple_of=2, cap_feat_dim=32)
    config |= dict(axes_dim_rope=(4, 2, 2), axes_lens=(16, 8, 8))
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[0, 2] = not ragged
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([0.1, 0.7]),
        "encoder_hidden_states": torch.randn(2, 3, 32),
        "encoder_attention_mask": mask,
    }
    return config, inputs


def lumina_next():
    config = dict(sample_size=4, in_channels=4, hidden_size=24, num_layers=2, num_attention_heads=3)
    config |= dict(num_kv_heads=1, multiple_of=2, cross_attention_dim=8)
    angles = torch.rand(384, 384, 4)
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([0.1, 0.7]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "encoder_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "image_rotary_emb": torch.polar(torch.ones_like(angles), angles),
        "cross_attention_kwargs": {},
    }
    return config, inputs


def z_image(captions=(3, 3), omni=False):
    """Captions of several lengths in a batch are padded and masked; omni: a clean picture beside the noisy one."""
    config = dict(in_channels=4, dim=24, n_layers=1, n_refiner_layers=1, n_heads=3, n_kv_heads=3)
    config |= dict(cap_feat_dim=8, axes_dims=[4, 2, 2], axes_lens=[256, 32, 32])
    inputs = {
        "x": [torch.randn(4, 1, 4, 4) for _ in captions],
        "t": torch.tensor([0.1, 0.7])[: len(captions)],
        "cap_feats": [torch.randn(length, 8) for length in captions],
    }
    if omni:
        config |= dict(siglip_feat_dim=8)
        inputs["x"] = [[torch.randn(4, 1, 4, 4) for _ in range(2)] for _ in captions]
        inputs["cap_feats"] = [[torch.randn(length, 8) for _ in range(2)] for length in captions]
        inputs["siglip_feats"] = [[torch.randn(2, 2, 8), None] for _ in captions]
        inputs["image_noise_mask"] = [[0, 1] for _ in captions]
    return config, inputs


def hidream(height=4, head=8, axes=(4, 2, 2)):
    """Pictures that are no squares come masked; with small axes a part of each head is turned."""
    config = dict(patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1)
    config |= dict(attention_head_dim=head, num_attention_heads=3, caption_channels=[8, 4], text_emb_dim=8)
    config |= dict(num_routed_experts=0, axes_dims_rope=axes, max_resolution=(8, 8), llama_layers=(0, 1))
    inputs = {
        "hidden_states": torch.randn(2, 4, height, 4),
        "timesteps": torch.tensor([100, 700]),
        "encoder_hidden_states_t5": torch.randn(2, 3, 8),
        "encoder_hidden_states_llama3": torch.randn(2, 2, 3, 4),
        "pooled_embeds": torch.randn(2, 8),
    }
    return config, inputs


def sana(**norms):
    config = dict(in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=3)
    config |= dict(num_cross_attention_heads=3, cross_attention_head_dim=8, cross_attention_dim=24)
    config |= dict(caption_channels=8, sample_size=4, patch_size=1) | norms
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([100, 700]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    }
    return config, inputs


def pixart():
    config = dict(sample_size=4, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3)
    config |= dict(in_channels=4, out_channels=8, cross_attention_dim=24, caption_channels=8)
    config |= dict(use_additional_conditions=False)
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([100, 700]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "added_cond_kwargs": {"aspect_ratio": None, "resolution": None},
    }
    return config, inputs


def dit():
    config = dict(in_channels=4, out_channels=8, num_attention_heads=3, attention_head_dim=8, num_layers=1)
    config |= dict(num_embeds_ada_norm=8, patch_size=2, sample_size=4)
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([100, 700]),
        "class_labels": torch.tensor([1, 5]),
    }
    return config, inputs


def of_unet(norm="layer_norm"):
    """A part of UNets; `ada_norm_zero` with cross-attention has both norms and vectors."""
    config = dict(num_attention_heads=3, attention_head_dim=8, in_channels=24, num_layers=1)
    config |= dict(norm_num_groups=4, cross_attention_dim=8, norm_type=norm)
    if norm == "ada_norm_zero":
        config |= dict(num_embeds_ada_norm=8)
    inputs = {
        "hidden_states": torch.randn(2, 24, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([100, 700]),
        "class_labels": torch.tensor([1, 5]),
    }
    return config, inputs


def temporal():
    config = dict(num_attention_heads=3, attention_head_dim=8, in_channels=24, num_layers=1)
    config |= dict(norm_num_groups=4)
    return config, {"hidden_states": torch.randn(4, 24, 2, 2), "num_frames": 2}


def prior():
    config = dict(num_attention_heads=3, attention_head_dim=8, num_layers=1, embedding_dim=8)
    config |= dict(num_embeddings=3, additional_embeddings=4)
    inputs = {
        "hidden_states": torch.randn(2, 8),
        "timestep": torch.tensor([100, 700]),
        "proj_embedding": torch.randn(2, 8),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]).bool(),
    }
    return config, inputs


def ernie_image():
    config = dict(hidden_size=24, num_attention_heads=3, num_layers=2, ffn_hidden_size=32, in_channels=4)
    config |= dict(out_channels=4, patch_size=1, text_in_dim=8, rope_theta=256, rope_axes_dim=(4, 2, 2))
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([100.0, 700.0]),
        "text_bth": torch.randn(2, 3, 8),
        "text_lens": torch.tensor([2, 3]),
    }
    return config, inputs


def prx():
    config = dict(in_channels=4, patch_size=2, context_in_dim=8, hidden_size=24, mlp_ratio=2.0, num_heads=3)
    config |= dict(depth=1, axes_dim=[4, 4])
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([0.1, 0.7]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    }
    return config, inputs


def ideogram4(per_token=False):
    """Two samples of a text's and a picture's tokens each in one packed row."""
    config = dict(in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=3)
    config |= dict(intermediate_size=32, adaln_dim=16, llm_features_dim=8, mrope_section=(2, 1, 1))
    indicator = torch.tensor([LLM, LLM, PICTURE, PICTURE] * 2)
    inputs = {
        "hidden_states": torch.randn(2, 8, 4),
        "timestep": (torch.rand(2, 8) if per_token else torch.tensor([0.1, 0.7])).bfloat16(),
        "encoder_hidden_states": torch.randn(2, 8, 8),
        "position_ids": torch.randint(0, 8, (2, 8, 3)),
        "segment_ids": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]).expand(2, 8),
        "indicator": indicator.expand(2, 8),
    }
    return config, inputs


def dreamlite(**options):
    config = dict(num_attention_heads=4, attention_head_dim=8, in_channels=24, num_layers=1)
    config |= dict(norm_num_groups=4, cross_attention_dim=8, qk_norm="rms_norm") | options
    inputs = {"hidden_states": torch.randn(2, 24, 4, 4), "encoder_hidden_states": torch.randn(2, 3, 8)}
    return config, inputs


# Class, or "Class, what of it": a function that gives (configuration, inputs).
MODELS: dict[str, Callable] = {
    "DiTTransformer2DModel": dit,
    "DreamLiteTransformer2DModel": dreamlite,
    "DreamLiteTransformer2DModel, no self-attention": partial(dreamlite, use_self_attention=False),
    "ErnieImageTransformer2DModel": ernie_image,
    "HiDreamImageTransformer2DModel": hidream,
    "HiDreamImageTransformer2DModel, no square": partial(hidream, height=8),
    "HiDreamImageTransformer2DModel, half of each head turned": partial(hidream, head=12, axes=(2, 2, 2)),
    "Ideogram4Transformer2DModel": ideogram4,
    "Ideogram4Transformer2DModel, a timestep per token": partial(ideogram4, per_token=True),
    "Lumina2Transformer2DModel": lumina2,
    "Lumina2Transformer2DModel, captions of several lengths": partial(lumina2, ragged=True),
    "LuminaNextDiT2DModel": lumina_next,
    "PixArtTransformer2DModel": pixart,
    "PRXTransformer2DModel": prx,
    "PriorTransformer": prior,
    "SanaTransformer2DModel": sana,
    "SanaTransformer2DModel, q and k normed": partial(sana, qk_norm="rms_norm_across_heads"),
    "Transformer2DModel": of_unet,
    "Transformer2DModel, ada_norm_zero": partial(of_unet, norm="ada_norm_zero"),
    "TransformerTemporalModel": temporal,
    "ZImageTransformer2DModel": z_image,
    "ZImageTransformer2DModel, captions of several lengths": partial(z_image, captions=(3, 40)),
    "ZImageTransformer2DModel, omni": partial(z_image, captions=(3,), omni=True),
}
