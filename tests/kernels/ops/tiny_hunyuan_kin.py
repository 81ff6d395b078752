"""Tiny configurations and inputs of HunyuanVideo's and CogVideoX's kin, for `tiny_models.build`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from op_oracle import DEVICE

HEADS = dict(num_attention_heads=2, attention_head_dim=16)


def text_mask() -> torch.Tensor:
    return torch.tensor([[1, 1, 0], [1, 1, 1]])


def hunyuan_video() -> tuple[dict, dict]:
    config = HEADS | dict(in_channels=4, out_channels=4, num_layers=1, num_refiner_layers=1, text_embed_dim=8)
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "timestep": torch.tensor([100, 700]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "encoder_attention_mask": text_mask(),
    }
    return config | {"rope_axes_dim": (4, 6, 6)}, inputs


def framepack():
    config, inputs = hunyuan_video()
    config |= dict(num_single_layers=1, pooled_projection_dim=8, has_image_proj=True, image_proj_dim=8)
    inputs |= {
        "pooled_projections": torch.randn(2, 8),
        "guidance": torch.tensor([1000.0, 6000.0]),
        "image_embeds": torch.randn(2, 2, 8),
        "indices_latents": torch.tensor([3, 4]),
        "latents_clean": torch.randn(2, 4, 1, 4, 4),
        "indices_latents_clean": torch.tensor([0]),
        "latents_history_2x": torch.randn(2, 4, 1, 4, 4),
        "indices_latents_history_2x": torch.tensor([1]),
        "latents_history_4x": torch.randn(2, 4, 1, 4, 4),
        "indices_latents_history_4x": torch.tensor([2]),
    }
    return config | {"has_clean_x_embedder": True}, inputs


def hunyuan_video15(images=False):
    config, inputs = hunyuan_video()
    config |= dict(patch_size=2, text_embed_2_dim=8, image_embed_dim=8)
    inputs |= {
        "timestep": torch.tensor([100.0, 700.0], dtype=torch.bfloat16),
        "encoder_hidden_states_2": torch.randn(2, 2, 8),
        "encoder_attention_mask_2": torch.tensor([[1, 0], [1, 1]]),
        "image_embeds": torch.randn(2, 2, 8) if images else torch.zeros(2, 2, 8),
    }
    return config, inputs


def hunyuan_image(video=False):
    config, inputs = hunyuan_video()
    config |= dict(num_single_layers=1, patch_size=(1, 2, 2) if video else (2, 2))
    inputs |= {"timestep": torch.tensor([100.0, 700.0], dtype=torch.bfloat16)}
    if not video:
        config |= {"rope_axes_dim": (8, 8)}
        inputs |= {"hidden_states": torch.randn(2, 4, 4, 4)}
    return config, inputs


def consisid():
    config = HEADS | dict(in_channels=4, out_channels=4, num_layers=1, time_embed_dim=8, text_embed_dim=8)
    config |= dict(sample_width=4, sample_height=4, sample_frames=5, max_text_seq_length=3)
    config |= dict(use_rotary_positional_embeddings=True)
    angles = torch.rand(8, 8).repeat_interleave(2, -1)
    inputs = {
        "hidden_states": torch.randn(2, 2, 4, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([100, 700]),
        "image_rotary_emb": (angles.cos().to(DEVICE), angles.sin().to(DEVICE)),
    }
    return config, inputs


def cogview():
    config = HEADS | dict(in_channels=4, num_layers=1, out_channels=4, text_embed_dim=8, time_embed_dim=8)
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([100, 700]),
        "original_size": torch.tensor([[32, 32], [64, 32]]),
        "target_size": torch.tensor([[32, 32], [32, 32]]),
        "crop_coords": torch.tensor([[0, 0], [0, 8]]),
    }
    return config | {"condition_dim": 4}, inputs


def cogview3_plus():
    config, inputs = cogview()
    return config | {"pos_embed_max_size": 8, "sample_size": 4}, inputs


def cogview4(mask=False):
    config, inputs = cogview()
    return config, inputs | ({"attention_mask": text_mask()} if mask else {})


def glm_image():
    config, inputs = cogview()
    del inputs["original_size"]
    config |= {"prior_vq_quantizer_codebook_size": 8}
    inputs |= {"prior_token_id": torch.randint(0, 8, (2, 4)), "prior_token_drop": torch.tensor([True, False])}
    return config, inputs | {"attention_mask": text_mask()}


def hunyuan_dit():
    config = dict(num_attention_heads=2, attention_head_dim=16, in_channels=4, sample_size=4, patch_size=2)
    config |= dict(num_layers=2, hidden_size=32, cross_attention_dim=8, cross_attention_dim_t5=8)
    config |= dict(pooled_projection_dim=4, text_len=3, text_len_t5=2, activation_fn="gelu-approximate")
    angles = torch.rand(4, 8).repeat_interleave(2, -1)
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "text_embedding_mask": torch.ones(2, 3),
        "encoder_hidden_states_t5": torch.randn(2, 2, 8),
        "text_embedding_mask_t5": torch.ones(2, 2),
        "timestep": torch.tensor([100.0, 700.0], dtype=torch.bfloat16),
        "image_meta_size": torch.tensor([[32.0, 32.0, 16.0, 16.0, 0.0, 0.0]] * 2),
        "style": torch.zeros(2, dtype=torch.long),
        "image_rotary_emb": (angles.cos().to(DEVICE), angles.sin().to(DEVICE)),
    }
    return config, inputs


def kandinsky5(sparse=False):
    config = dict(in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=8, model_dim=32)
    config |= dict(ff_dim=16, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6))
    side = 16 if sparse else 4
    inputs = {
        "hidden_states": torch.randn(2, 2, side, side, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([100.0, 700.0]),
        "pooled_projections": torch.randn(2, 8),
        "visual_rope_pos": [torch.arange(2), torch.arange(side // 2), torch.arange(side // 2)],
        "text_rope_pos": torch.arange(3),
    }
    if sparse:  # every block, in another order of tokens
        own = {"to_fractal": True, "P": 0.9, "sta_mask": torch.ones(1, 1, 2, 2, dtype=torch.bool)}
        inputs["sparse_params"] = own
    return config, inputs


def kandinsky6(sound=True, released=False):
    """`released` as the checkpoints are: rotations in cross-attention, gates and modulation of the other stream."""
    config = dict(in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=8, model_dim=32)
    config |= dict(ff_dim=16, num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6), visual_cond=False)
    config |= dict(in_audio_dim=4, out_audio_dim=4)
    config |= dict.fromkeys(("ca_rope", "cross_gates", "fix_modulation"), released)
    inputs = {
        "hidden_states": torch.randn(2, 2, 4, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "pooled_projections": torch.randn(2, 8),
        "timestep": torch.tensor([100.0, 700.0]),
    }
    if sound:
        inputs["audio_hidden_states"] = torch.randn(2, 5, 4)
    return config, inputs


def kandinsky6_sr():
    config = dict(in_visual_dim=4, out_visual_dim=4, time_dim=8, model_dim=32, ff_dim=16, num_visual_blocks=1)
    inputs = {"hidden_states": torch.randn(2, 2, 8, 8, 9), "timestep": torch.tensor([100.0, 700.0])}
    return config | {"axes_dims": (4, 6, 6)}, inputs


def mochi():
    config = HEADS | dict(num_layers=2, pooled_projection_dim=16, in_channels=4, text_embed_dim=8)
    config |= dict(time_embed_dim=4, max_sequence_length=3)
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([100, 700]),
        "encoder_attention_mask": text_mask().bool(),
    }
    return config, inputs


def easyanimate(**own):
    config = HEADS | dict(in_channels=4, out_channels=4, num_layers=2, mmdit_layers=1, text_embed_dim=8)
    config |= dict(time_embed_dim=8, patch_size=2) | own
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "timestep": torch.tensor([100, 700]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
    }
    return config, inputs


def allegro():
    config = dict(num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=1)
    config |= dict(
        cross_attention_dim=48, sample_width=4, sample_height=4, sample_frames=2, caption_channels=8
    )
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([100, 700]),
        "encoder_attention_mask": text_mask(),
    }
    return config, inputs


def latte():
    config = HEADS | dict(sample_size=4, num_layers=1, patch_size=2, caption_channels=8, in_channels=4)
    config |= dict(cross_attention_dim=32, out_channels=4, norm_type="ada_norm_single", video_length=2)
    config |= dict(activation_fn="gelu-approximate", norm_elementwise_affine=False, num_embeds_ada_norm=1000)
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([100, 700]),
    }
    return config, inputs


def joy_image(**own):
    config = dict(patch_size=[1, 2, 2], in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=8)
    config |= dict(num_layers=1, rope_dim_list=[4, 6, 6]) | own
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([100.0, 700.0]),
    }
    return config, inputs


def joy_image_plus(mask=False):
    config, inputs = joy_image()
    inputs |= {
        "hidden_states": torch.randn(2, 6, 4, 1, 2, 2),
        "shape_list": [[(1, 2, 2), (1, 1, 2)], [(1, 2, 2)]],
    }
    return config, inputs | ({"encoder_hidden_states_mask": text_mask()} if mask else {})


# Class, or "Class, what of it": a function that gives (configuration, inputs).
MODELS: dict[str, Callable] = {
    "HunyuanVideoFramepackTransformer3DModel": framepack,
    "HunyuanVideo15Transformer3DModel": hunyuan_video15,
    "HunyuanVideo15Transformer3DModel, images": partial(hunyuan_video15, images=True),
    "HunyuanImageTransformer2DModel": hunyuan_image,
    "HunyuanImageTransformer2DModel, frames": partial(hunyuan_image, video=True),
    "ConsisIDTransformer3DModel": consisid,
    "CogView3PlusTransformer2DModel": cogview3_plus,
    "CogView4Transformer2DModel": cogview4,
    "CogView4Transformer2DModel, mask": partial(cogview4, mask=True),
    "GlmImageTransformer2DModel": glm_image,
    "HunyuanDiT2DModel": hunyuan_dit,
    "Kandinsky5Transformer3DModel": kandinsky5,
    "Kandinsky6Transformer3DModel": kandinsky6,
    "Kandinsky6Transformer3DModel, picture alone": partial(kandinsky6, sound=False),
    "Kandinsky6Transformer3DModel, as released": partial(kandinsky6, released=True),
    "Kandinsky6SRTransformer3DModel": kandinsky6_sr,
    "MochiTransformer3DModel": mochi,
    "EasyAnimateTransformer3DModel": easyanimate,
    "EasyAnimateTransformer3DModel, after norm": partial(easyanimate, after_norm=True),
    "AllegroTransformer3DModel": allegro,
    "LatteTransformer3DModel": latte,
    "JoyImageEditTransformer3DModel": joy_image,
    "JoyImageEditTransformer3DModel, text turned": partial(joy_image, rope_type="mrope"),
    "JoyImageEditPlusTransformer3DModel": joy_image_plus,
    "JoyImageEditPlusTransformer3DModel, mask": partial(joy_image_plus, mask=True),
}
