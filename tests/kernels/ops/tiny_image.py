"""Tiny configurations and inputs of the other image transformers, for `tiny_models.build`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch


def lumina2(ragged=False):
    config = dict(sample_size=4, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1)
    config |= dict(num_attention_heads=3, num_kv_heads=1, multiple_of=2, cap_feat_dim=8)
    config |= dict(axes_dim_rope=(4, 2, 2), axes_lens=(16, 8, 8))
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[0, 2] = not ragged
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([0.1, 0.7]),
        "encoder_hidden_states": torch.randn(2, 3, 8),
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
        "t": torch.tensor([0.1, 0.7]),
        "cap_feats": [torch.randn(length, 8) for length in captions],
    }
    if omni:
        config |= dict(siglip_feat_dim=8)
        inputs["x"] = [[torch.randn(4, 1, 4, 4) for _ in range(2)] for _ in captions]
        inputs["cap_feats"] = [[torch.randn(length, 8) for _ in range(3)] for length in captions]
        inputs["siglip_feats"] = [[torch.randn(2, 2, 8), None] for _ in captions]
        inputs["image_noise_mask"] = [[0, 1] for _ in captions]
    return config, inputs


# Class, or "Class, what of it": a function that gives (configuration, inputs).
MODELS: dict[str, Callable] = {
    "Lumina2Transformer2DModel": lumina2,
    "Lumina2Transformer2DModel, captions of several lengths": partial(lumina2, ragged=True),
    "LuminaNextDiT2DModel": lumina_next,
    "ZImageTransformer2DModel": z_image,
    "ZImageTransformer2DModel, captions of several lengths": partial(z_image, captions=(3, 40)),
    "ZImageTransformer2DModel, omni": partial(z_image, omni=True),
}
