"""Tiny configurations and inputs of Flux, SD3, Qwen-Image and their like, for `tiny_models.build`."""

from __future__ import annotations

from collections.abc import Callable

import torch

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}


def ids(tokens: int, axes: int = 3) -> torch.Tensor:
    return torch.stack([torch.arange(tokens) + axis for axis in range(axes)], dim=1)


def flux(axes=(4, 4, 8), **options):
    """Of all models with FLUX.1's blocks: six tokens of an image, three of a text."""
    config = HEADS | {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 8}
    inputs = {
        "hidden_states": torch.randn(2, 6, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([0.1, 0.7]),
        "img_ids": ids(6, len(axes)),
        "txt_ids": ids(3, len(axes)),
    }
    return config | {"axes_dims_rope": axes} | options, inputs


def pooled():
    config, inputs = flux(pooled_projection_dim=8, guidance_embeds=True)
    return config, inputs | {"pooled_projections": torch.randn(2, 8), "guidance": torch.tensor([1.0, 3.5])}


def chroma(masked=False):
    network = {"approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 1}
    config, inputs = flux(**network)
    if masked:
        inputs["attention_mask"] = torch.ones(2, 9, dtype=torch.bool)
        inputs["attention_mask"][0, 2] = inputs["attention_mask"][1, 5] = False  # a text's, an image's
    return config, inputs


def fibo():
    config, inputs = flux(text_encoder_dim=8, pooled_projection_dim=None)
    return config, inputs | {"text_encoder_layers": torch.randn(2, 2, 3, 8)}  # one for each block


def sd3(dual=(), **options):
    """Two blocks, the last of which drops the text."""
    config = HEADS | {"sample_size": 4, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    config |= {"joint_attention_dim": 8, "caption_projection_dim": 32, "pooled_projection_dim": 8}
    config |= {"pos_embed_max_size": 4, "qk_norm": "rms_norm", "dual_attention_layers": dual}
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "pooled_projections": torch.randn(2, 8),
        "timestep": torch.tensor([100.0, 700.0]),
    }
    return config | options, inputs


def qwen(given=False):
    """Two blocks, the last of which leaves the text unread, with a mask of it.

    `given`: an image of two tokens beside that of six, at a timestep of 0.
    """
    config = HEADS | {"in_channels": 4, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 8}
    config |= {"axes_dims_rope": (4, 4, 8), "patch_size": 1, "zero_cond_t": given}
    inputs = {
        "hidden_states": torch.randn(2, 8 if given else 6, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "encoder_hidden_states_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "timestep": torch.tensor([0.1, 0.7]),
        "img_shapes": [[(1, 2, 3), (1, 1, 2)]] * 2 if given else [(1, 2, 3)] * 2,
    }
    return config, inputs


def auraflow():
    config = HEADS | {"sample_size": 4, "patch_size": 2, "in_channels": 4, "out_channels": 4}
    config |= {"num_mmdit_layers": 1, "num_single_dit_layers": 1, "joint_attention_dim": 8}
    config |= {"caption_projection_dim": 32, "pos_embed_max_size": 4}
    inputs = {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 8),
        "timestep": torch.tensor([0.1, 0.7]),
    }
    return config, inputs


def flux2():
    config, inputs = flux(axes=(4, 4, 4, 4))
    return config, inputs | {"guidance": torch.tensor([1.0, 3.5])}


def flux3(given=False):
    """Two single blocks: the last leaves the text unread."""
    config, inputs = flux(axes=(4, 4, 4, 4), cond_in_channels=4, num_single_layers=2)
    if given:
        inputs |= {"image_cond_hidden_states": torch.randn(2, 2, 4), "image_cond_ids": ids(2, 4)}
    return config, inputs


def qwen21():
    """A text of three tokens, the second padded for a sample, a given image behind the first, and the image."""
    config = HEADS | {"in_channels": 4, "out_channels": 4, "num_layers": 1, "context_in_dim": 8}
    config |= {"axes_dims_rope": (4, 4, 8)}
    slots = torch.tensor([False, True, False, False, True])  # four tokens each
    inputs = {
        "hidden_states": torch.randn(2, 8, 4),
        "encoder_hidden_states": torch.randn(2, 4, 8),
        "encoder_hidden_states_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool),
        "timestep": torch.tensor([0.1, 0.7]),
        "img_shapes": [[(1, 2, 2), (1, 2, 2)]] * 2,
        "img_mask": slots.expand(2, -1).contiguous(),
    }
    return config, inputs


def krea2():
    config = HEADS | {"in_channels": 4, "num_layers": 1, "num_key_value_heads": 1, "intermediate_size": 16}
    config |= {"timestep_embed_dim": 8, "text_hidden_dim": 8, "num_text_layers": 2}
    config |= {"text_num_attention_heads": 2, "text_num_key_value_heads": 1, "text_intermediate_size": 8}
    config |= {"num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 4, 8)}
    inputs = {
        "hidden_states": torch.randn(2, 6, 4),
        "encoder_hidden_states": torch.randn(2, 3, 2, 8),
        "timestep": torch.tensor([0.1, 0.7]),
        "position_ids": ids(9),
        "encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool),
    }
    return config, inputs


def nucleus():
    """A dense block, and one of two experts that each take all tokens: nothing hangs on a rounding."""
    config, inputs = qwen()
    del config["zero_cond_t"]
    config |= {"num_layers": 2, "num_key_value_heads": 1, "dense_moe_strategy": "leave_first_block_dense"}
    config |= {"num_experts": 2, "moe_intermediate_dim": 16, "capacity_factors": 2.0, "mlp_ratio": 8.0}
    return config, inputs


def fibo2():
    """A block that injects the text; one prompt has two tokens and two of gist, the other three of each."""
    config = {"in_channels": 2, "dim": 32, "n_heads": 2, "n_layers": 1, "n_refiner_layers": 1}
    config |= {"cap_feat_dim": 8, "injection_layer_ids": (0,), "perceiver_num_layers": 1}
    config |= {"min_num_gist_tokens": 2, "max_num_gist_tokens": 4, "gist_step": 1, "axes_dims": (4, 4, 8)}
    config |= {"gist_min_text_len": 2, "gist_max_text_len": 4, "axes_lens": (16, 8, 8)}
    inputs = {
        "hidden_states": torch.randn(2, 2, 4, 8),
        "encoder_hidden_states": torch.randn(2, 2, 3, 8),
        "timestep": torch.tensor([0.1, 0.7]),
        "encoder_attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool),
    }
    return config, inputs


# Class, or "Class, what of it": a function that gives (configuration, inputs).
MODELS: dict[str, Callable] = {
    "FluxTransformer2DModel": pooled,
    "LongCatImageTransformer2DModel": lambda: flux(pooled_projection_dim=8),
    "OvisImageTransformer2DModel": lambda: flux(out_channels=4),
    "BriaTransformer2DModel": lambda: flux(pooled_projection_dim=None),
    "BriaFiboTransformer2DModel": fibo,
    "BriaFibo2Transformer2DModel": fibo2,
    "ChromaTransformer2DModel": chroma,
    "ChromaTransformer2DModel, masked": lambda: chroma(masked=True),
    "SD3Transformer2DModel": sd3,
    "SD3Transformer2DModel, without norms of q and k": lambda: sd3(qk_norm=None),
    "SD3Transformer2DModel, dual attention": lambda: sd3(dual=(0, 1)),
    "QwenImageTransformer2DModel": qwen,
    "QwenImageTransformer2DModel, given images": lambda: qwen(given=True),
    "AuraFlowTransformer2DModel": auraflow,
    "Flux2Transformer2DModel": flux2,
    "Flux3Transformer2DModel": flux3,
    "Flux3Transformer2DModel, given images": lambda: flux3(given=True),
    "QwenImage21Transformer2DModel": qwen21,
    "Krea2Transformer2DModel": krea2,
    "NucleusMoEImageTransformer2DModel": nucleus,
}
