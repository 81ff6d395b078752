"""Tiny configurations and inputs of Wan's kin, for `tiny_models.build`."""

from __future__ import annotations

from collections.abc import Callable

import torch

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
        dict(in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2)
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
    config |= dict(use_prompt_embeddings=False, perturbed_attn=True, rope_type="split", ff_bias=False)
    return ltx2(inputs=inputs, **config)


MODELS: dict[str, Callable] = {
    "LTX2VideoTransformer3DModel": ltx2,
    "LTX2VideoTransformer3DModel, a timestep per token": lambda: ltx2(
        per_token=True, norm_elementwise_affine=True
    ),
    "LTX2VideoTransformer3DModel, halves": lambda: ltx2(rope_type="split"),
    "LTX2VideoTransformer3DModel, isolated": lambda: ltx2(inputs={"isolate_modalities": True}, num_layers=1),
    "LTX2VideoTransformer3DModel, 2.3": ltx23,
    "SkyReelsV2Transformer3DModel": skyreels_v2,
    "SkyReelsV2Transformer3DModel, diffusion forcing": skyreels_v2_forcing,
    "SkyReelsV2Transformer3DModel, image": lambda: skyreels_v2(image=True, cross_attn_norm=False),
    "SkyReelsV2Transformer3DModel, causal": lambda: skyreels_v2(num_frame_per_block=2),
    "WanVACETransformer3DModel": wan_vace,
    "WanAnimateTransformer3DModel": wan_animate,
    "ChronoEditTransformer3DModel": chrono_edit,
    "ChronoEditTransformer3DModel, image": lambda: chrono_edit(image=True),
}
