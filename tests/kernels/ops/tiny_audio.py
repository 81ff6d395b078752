"""Tiny configurations and inputs of the transformers of sound, and of others without modulation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch


def stable_audio():
    config = dict(sample_size=8, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4)
    config |= dict(num_key_value_attention_heads=2, out_channels=4, cross_attention_dim=16, time_proj_dim=8)
    config |= dict(global_states_input_dim=8, cross_attention_input_dim=8)
    angles = torch.rand(9, 4)
    inputs = {
        "hidden_states": torch.randn(2, 4, 8),
        "timestep": torch.tensor([0.1, 0.7]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "global_hidden_states": torch.randn(2, 1, 8),
        "rotary_embedding": (angles.cos(), angles.sin()),
    }
    return config, inputs


def stable_audio3(inpaint=False):
    config = dict(io_channels=4, embed_dim=24, depth=1, num_heads=3, cond_token_dim=8, global_cond_dim=8)
    config |= dict(local_add_cond_dim=5, timestep_features_dim=8, num_memory_tokens=2)
    inputs = {
        "hidden_states": torch.randn(2, 4, 6),
        "timestep": torch.tensor([0.1, 0.7]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "global_hidden_states": torch.randn(2, 8),
        "encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    }
    if inpaint:
        inputs["local_add_cond"] = torch.randn(2, 5, 6)
    return config, inputs


def ace_step():
    config = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4)
    config |= dict(num_key_value_heads=2, head_dim=8, in_channels=12, audio_acoustic_hidden_dim=4)
    config |= dict(sliding_window=2)
    inputs = {
        "hidden_states": torch.randn(2, 8, 4),
        "timestep": torch.tensor([0.1, 0.7]).bfloat16(),
        "timestep_r": torch.tensor([0.1, 0.4]),
        "encoder_hidden_states": torch.randn(2, 3, 24),
        "context_latents": torch.randn(2, 8, 8),
    }
    return config, inputs


def longcat_audio(**options):
    config = (
        dict(dit_dim=24, dit_depth=1, dit_heads=3, dit_text_dim=8, latent_dim=4, text_conv=False) | options
    )
    inputs = {
        "hidden_states": torch.randn(2, 6, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "encoder_attention_mask": torch.ones(2, 3, dtype=torch.bool),
        "timestep": torch.tensor([0.1, 0.7]),
        "latent_cond": torch.randn(2, 6, 4),
    }
    return config, inputs


def minimax_music3():
    config = dict(in_channels=4, condition_dim=8, num_layers=1, num_attention_heads=3, attention_head_dim=8)
    config |= dict(ff_inner_dim=32, rotary_dim=4, fourier_embedding_dim=8)
    inputs = {
        "hidden_states": torch.randn(2, 4, 6),
        "timestep": torch.tensor([0.1, 0.7]).bfloat16(),
        "encoder_hidden_states": torch.randn(2, 6, 8),
    }
    return config, inputs


def omnigen():
    config = dict(in_channels=4, patch_size=2, hidden_size=24, num_attention_heads=3, num_key_value_heads=3)
    config |= dict(intermediate_size=32, num_layers=1, pad_token_id=0, vocab_size=16, pos_embed_max_size=4)
    config |= dict(rope_scaling={"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]}, time_step_dim=8)
    tokens = 3 + 1 + 4  # of text, timestep and picture
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([0.1, 0.7]),
        "input_ids": torch.randint(1, 16, (2, 3)),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": torch.ones(2, tokens, tokens),
        "position_ids": torch.arange(tokens).expand(2, tokens),
    }
    return config, inputs


# Class, or "Class, what of it": a function that gives (configuration, inputs).
MODELS: dict[str, Callable] = {
    "AceStepTransformer1DModel": ace_step,
    "LongCatAudioDiTTransformer": longcat_audio,
    "LongCatAudioDiTTransformer, local": partial(longcat_audio, adaln_type="local", cross_attn_norm=True),
    "LongCatAudioDiTTransformer, no text": partial(longcat_audio, cross_attn=False),
    "MiniMaxMusic3Transformer1DModel": minimax_music3,
    "OmniGenTransformer2DModel": omnigen,
    "StableAudio3DiTModel": stable_audio3,
    "StableAudio3DiTModel, sound that stays": partial(stable_audio3, inpaint=True),
    "StableAudioDiTModel": stable_audio,
}
