"""Tiny configurations and inputs of Wan's kin, for `tiny_models.build`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.attention.flex_attention

Built = tuple[dict, dict]  # configuration, inputs

WAN = dict(
    num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=8, freq_dim=16
)
WAN |= dict(ffn_dim=32, num_layers=1, rope_max_seq_len=16)
IMAGE = dict(image_dim=8, added_kv_proj_dim=48)


def wan_inputs(image: bool = False) -> dict:
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "timestep": torch.tensor([100.0, 700.0]),
        # diffusers cuts the image off by 512
        "encoder_hidden_states": torch.randn(2, 512 if image else 5, 8),
    }
    if image:
        inputs["encoder_hidden_states_image"] = torch.randn(2, 3, 8)
    return inputs


def skyreels_v2(image: bool = False, **config) -> Built:
    return WAN | (IMAGE if image else {}) | config, wan_inputs(image)


def skyreels_v2_forcing() -> Built:
    """A timestep per frame."""
    inputs = wan_inputs() | {"timestep": torch.tensor([[100, 300], [500, 700]])}
    return WAN, inputs | {"enable_diffusion_forcing": True}


def skyreels_v2_causal() -> Built:
    """Two frames that don't see the next two."""
    return WAN | {"num_frame_per_block": 2}, wan_inputs() | {"hidden_states": torch.randn(2, 4, 4, 4, 4)}


def wan_vace(**config) -> Built:
    inputs = wan_inputs() | {"control_hidden_states": torch.randn(2, 6, 1, 4, 4)}
    inputs["control_hidden_states_scale"] = torch.tensor([0.5, 2.0])
    return WAN | {"num_layers": 3, "vace_layers": [0, 2], "vace_in_channels": 6} | config, inputs


def wan_animate() -> Built:
    inputs = wan_inputs(image=True) | {
        "hidden_states": torch.randn(2, 12, 3, 4, 4),
        "pose_hidden_states": torch.randn(2, 4, 2, 4, 4),
        "face_pixel_values": torch.randn(2, 3, 8, 16, 16),
    }
    config = (
        WAN
        | IMAGE
        | {"in_channels": 12, "latent_channels": 4, "num_layers": 2, "inject_face_latents_blocks": 2}
    )
    config |= dict(motion_encoder_channel_sizes={"4": 4, "8": 4, "16": 4}, motion_encoder_size=16)
    config |= dict(motion_style_dim=8, motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=8)
    return config | {"face_encoder_num_heads": 2}, inputs


def chrono_edit(image: bool = False) -> Built:
    return WAN | {"attention_head_dim": 18} | (
        IMAGE | {"added_kv_proj_dim": 54} if image else {}
    ), wan_inputs(image)


def ltx2(per_token: bool = False, inputs: dict | None = None, **config) -> Built:
    config = (
        dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=1)
        | config
    )
    config |= dict(cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, caption_channels=8)
    config |= dict(audio_num_attention_heads=2, audio_attention_head_dim=6, audio_cross_attention_dim=12)
    given = {
        "hidden_states": torch.randn(2, 8, 4),
        "audio_hidden_states": torch.randn(2, 5, 4),
        "encoder_hidden_states": 4 * torch.randn(2, 3, 8),
        "audio_encoder_hidden_states": 4 * torch.randn(2, 3, 8),
        "timestep": torch.rand(2, 8) * 1000 if per_token else torch.tensor([100.0, 700.0]),
        "audio_timestep": torch.rand(2, 5) * 1000 if per_token else None,
        "encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        **{"num_frames": 2, "height": 2, "width": 2, "audio_num_frames": 5},
    }
    return config, given | (inputs or {})


def ltx23() -> Built:
    """As LTX-2.3: queries and prompts of cross-attention are modulated, heads are gated, some samples perturbed."""
    inputs = {
        "encoder_hidden_states": torch.randn(2, 3, 16),
        "audio_encoder_hidden_states": torch.randn(2, 3, 12),
    }
    inputs |= {"sigma": torch.tensor([100.0, 700.0]), "use_cross_timestep": True}
    inputs |= {"spatio_temporal_guidance_blocks": [0], "perturbation_mask": torch.tensor([0.0, 1.0])}
    inputs |= {"video_self_attention_mask": torch.rand(2, 8, 8).round()}
    config = dict(gated_attn=True, cross_attn_mod=True, audio_gated_attn=True, audio_cross_attn_mod=True)
    config |= dict(use_prompt_embeddings=False, perturbed_attn=True, rope_type="split")
    return ltx2(inputs=inputs, **config)


def wan_animate_2(**config) -> Built:
    """The pass over the reference, which fills the cache; lists of one sample."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    config = (
        dict(text_len=5, in_dim=6, dim=48, ffn_dim=32, freq_dim=16, text_dim=8, out_dim=4, num_heads=3)
        | config
    )
    inputs = {
        "hidden_states": [torch.randn(4, 2, 4, 4)],
        "timestep": torch.tensor([1.0]),
        "encoder_hidden_states": [torch.randn(4, 8)],
        "condition_latents": [torch.randn(2, 2, 4, 4)],
        "kv_cache": WanAnimate2KVCache(1),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.tensor([[2, 2, 2]]),
    }
    return config | {"num_layers": 1, "use_img_emb": False, "refer_stride": 2}, inputs


def anyflow(**inputs) -> Built:
    given = {
        "hidden_states": torch.randn(2, 2, 4, 4, 4),
        "timestep": torch.rand(2, 2) * 1000,
        "r_timestep": torch.rand(2, 2) * 1000,
        "encoder_hidden_states": torch.randn(2, 5, 8),
    }
    return WAN, given | inputs


def anyflow_far() -> Built:
    # Flex attention's dense maths has a gradient on CPUs, where it is refused because the compiled form has none.
    torch.nn.attention.flex_attention._validate_device = lambda *tensors: None
    config, inputs = anyflow(chunk_partition=[1, 1])
    return config | {"compressed_patch_size": (1, 4, 4), "full_chunk_limit": 1}, inputs


def helios(**config) -> Built:
    config = {key: WAN[key] for key in WAN if key != "rope_max_seq_len"} | config
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "timestep": torch.tensor([100, 700]),
        "encoder_hidden_states": torch.randn(2, 5, 8),
        "indices_hidden_states": torch.tensor([[5.0, 6.0]] * 2),
        "indices_latents_history_short": torch.tensor([[4.0]] * 2),
        "latents_history_short": torch.randn(2, 4, 1, 4, 4),
    }
    return config | {"rope_dim": (4, 6, 6)}, inputs


def cosmos(per_frame: bool = False, **config) -> Built:
    config = (
        dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1)
        | config
    )
    config |= dict(mlp_ratio=2, text_embed_dim=8, adaln_lora_dim=4, max_size=(4, 8, 8), patch_size=(1, 2, 2))
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "timestep": torch.rand(2, 1, 2, 1, 1) * 1000 if per_frame else torch.tensor([100.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, 5, 8),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5]).bool(),
        "block_controlnet_hidden_states": [torch.randn(2, 8, 32)],
        "fps": 24,
    }
    return config | {
        "concat_padding_mask": False,
        "extra_pos_embed_type": None,
        "controlnet_block_every_n": 1,
    }, inputs


def cosmos3(**config) -> Built:
    config = (
        dict(head_dim=16, hidden_size=32, intermediate_size=32, latent_channel=4, latent_patch_size=2)
        | config
    )
    config |= dict(num_attention_heads=2, num_hidden_layers=1, num_key_value_heads=1, patch_latent_dim=16)
    index = torch.arange(3, 11)
    inputs = {
        "input_ids": torch.tensor([1, 2, 3]),
        "text_indexes": torch.arange(3),
        "position_ids": torch.arange(11).expand(3, 11),
        "und_len": 3,
        "sequence_length": 11,
        "vision_tokens": [torch.randn(1, 4, 2, 4, 4)],
        "vision_token_shapes": [(2, 2, 2)],
        "vision_sequence_indexes": index,
        "vision_mse_loss_indexes": index,
        "vision_timesteps": torch.full((8,), 300.0),
        "vision_noisy_frame_indexes": [torch.tensor([0, 1])],
    }
    return config | {"vocab_size": 8, "rope_axes_dim": [4, 2, 2]}, inputs


def sana_video(**config) -> Built:
    config = (
        dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1)
        | config
    )
    config |= dict(num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24)
    config |= dict(caption_channels=8, mlp_ratio=1.0, sample_size=4, rope_max_seq_len=8)
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "encoder_hidden_states": torch.randn(2, 5, 8),
        "timestep": torch.tensor([100, 700]),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5]),
    }
    return config, inputs


def sana_wm() -> Built:
    config = dict(in_channels=4, num_layers=1, hidden_size=24, num_attention_heads=2, linear_head_dim=12)
    config |= dict(softmax_every_n=0, chunk_plucker_channels=6, caption_channels=8, mlp_ratio=1.0)
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 2, 2),
        "timestep": torch.tensor([[[100, 300]], [[500, 700]]]),
        "encoder_hidden_states": torch.randn(2, 1, 5, 8),
        "mask": torch.tensor([[1, 1, 1, 0, 0], [1] * 5]),
        "chunk_plucker": torch.randn(2, 6, 2, 2, 2),
    }
    return config, inputs


def sana_wm_refiner() -> Built:
    config, given = ltx2(per_token=True)
    keys = ("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")
    angles = torch.rand(2, 8, 8).repeat_interleave(2, -1)
    return config, {key: given[key] for key in keys} | {"video_rotary_emb": (angles.cos(), angles.sin())}


def motif_video(image: bool = False, **config) -> Built:
    config = (
        dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1)
        | config
    )
    config |= dict(num_single_layers=2, num_decoder_layers=1, mlp_ratio=1.0, patch_size=2, patch_size_t=1)
    config |= dict(text_embed_dim=8, image_embed_dim=4, rope_axes_dim=(4, 6, 6))
    inputs = {
        "hidden_states": torch.randn(2, 4, 2, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "timestep": torch.tensor([100, 700]),
    }
    if image:
        inputs["image_embeds"] = torch.randn(2, 2, 4)
    return config, inputs


def minimax_h3() -> Built:
    """Three tokens of text, three of sound, at another timestep, and four of the picture."""
    config = dict(
        num_attention_heads=2, attention_head_dim=16, hidden_size=24, num_layers=1, num_refiner_layers=1
    )
    config |= dict(ffn_dim=32, in_channels=4, audio_in_channels=6, text_dim=8, freq_dim=8, rope_freq_dim=2)
    config |= dict(time_embed_hidden_dim=24, time_embed_dim=16)
    text, audio, video = torch.arange(10).split([3, 3, 4])
    inputs = {
        "hidden_states": torch.randn(2, 4, 16),
        "audio_hidden_states": torch.randn(2, 3, 6),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": torch.tensor([0] * 3 + [1] * 3 + [0] * 4),
        "token_tags": torch.tensor([1] * 3 + [2] * 3 + [0] * 4),
        "position_ids": torch.arange(10.0).unsqueeze(1).expand(10, 3),
        **{"text_indices": text, "audio_indices": audio, "video_indices": video},
    }
    return config, inputs


MODELS: dict[str, Callable] = {
    "AnyFlowTransformer3DModel": anyflow,
    "AnyFlowFARTransformer3DModel": anyflow_far,
    "Cosmos3OmniTransformer": cosmos3,
    "Cosmos3OmniTransformer, Nemotron": lambda: cosmos3(hidden_act="relu2"),
    "CosmosTransformer3DModel": cosmos,
    "CosmosTransformer3DModel, a timestep per frame": lambda: cosmos(
        per_frame=True, extra_pos_embed_type=None
    ),
    "HeliosTransformer3DModel": helios,
    "HeliosTransformer3DModel, guidance": lambda: helios(guidance_cross_attn=True, num_layers=2),
    "MiniMaxH3Transformer3DModel": minimax_h3,
    "MotifVideoTransformer3DModel": motif_video,
    "MotifVideoTransformer3DModel, cross-attention": lambda: motif_video(
        image=True,
        qk_norm="layer_norm",
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    ),
    "SanaVideoTransformer3DModel": sana_video,
    "SanaWMLTX2RefinerTransformer3DModel": sana_wm_refiner,
    "SanaWMTransformer3DModel": sana_wm,
    "WanAnimate2Transformer3DModel": wan_animate_2,
    "LTX2VideoTransformer3DModel": ltx2,
    "LTX2VideoTransformer3DModel, a timestep per token": lambda: ltx2(
        per_token=True, norm_elementwise_affine=True
    ),
    "LTX2VideoTransformer3DModel, halves": lambda: ltx2(rope_type="split"),
    "LTX2VideoTransformer3DModel, halves of fewer heads in the picture": lambda: ltx2(
        rope_type="split", num_attention_heads=1, attention_head_dim=16
    ),
    "LTX2VideoTransformer3DModel, isolated": lambda: ltx2(inputs={"isolate_modalities": True}),
    "LTX2VideoTransformer3DModel, 2.3": ltx23,
    "SkyReelsV2Transformer3DModel": skyreels_v2,
    "SkyReelsV2Transformer3DModel, diffusion forcing": skyreels_v2_forcing,
    "SkyReelsV2Transformer3DModel, image": lambda: skyreels_v2(image=True, cross_attn_norm=False),
    "SkyReelsV2Transformer3DModel, causal": skyreels_v2_causal,
    "WanVACETransformer3DModel": wan_vace,
    "WanAnimateTransformer3DModel": wan_animate,
    "ChronoEditTransformer3DModel": chrono_edit,
    "ChronoEditTransformer3DModel, image": lambda: chrono_edit(image=True),
}
