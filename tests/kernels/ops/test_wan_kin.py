"""What a plain step of Wan's kin and of what lies beside them doesn't reach: checkpoints, caches, padded frames."""

import pytest
import torch
from op_oracle import DEVICE
from parity import check_parity
from tiny_models import build, new, step
from tiny_wan_kin import MODELS

from pgdpo_kernels import apply_to, set_backend

pytest.importorskip("diffusers")


# diffusers gives Wan-Animate-2's blocks keywords, which its checkpoints don't take.
@pytest.mark.parametrize("name", [name for name in MODELS if "," not in name and "Animate2" not in name])
def test_checkpoints(name):
    """diffusers hands a block its arguments by position then: the gradients are those without."""
    model, inputs = build(name)
    with set_backend("eager"):
        apply_to(model, strict=True)
        wanted = step(model, inputs)
        if not model._supports_gradient_checkpointing:
            pytest.skip(f"{name} has no checkpoints")
        model.enable_gradient_checkpointing()
        found = step(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_padded_frames_go_through_diffusers_own_block():
    model, inputs = build("SanaWMTransformer3DModel")
    inputs |= {"frame_valid_mask": torch.tensor([[1, 1], [1, 0]])}
    wanted = step(model, inputs)
    with set_backend("eager"):
        apply_to(model, strict=True)
        assert all(torch.equal(a, b) for a, b in zip(step(model, inputs), wanted, strict=True))


@pytest.mark.parametrize("name", ["SkyReelsV2Transformer3DModel", "WanVACETransformer3DModel"])
def test_fused_projections(name):
    model, inputs = build(name)
    model.fuse_qkv_projections()
    check_parity(model, inputs, torch.float32, "eager")


@pytest.mark.parametrize("mode", ["scalar", "per_head"])
def test_an_amplified_history(mode):
    """In fp32 alone, as in diffusers: the scale is kept in fp32, and lifts the keys to it beside the queries."""
    config, inputs = MODELS["HeliosTransformer3DModel"]()
    model = new("HeliosTransformer3DModel", config | {"is_amplify_history": True, "history_scale_mode": mode})
    model.blocks[0].attn1.history_key_scale.data.normal_()
    check_parity(model, inputs, torch.float32, "eager")


def test_a_cache_of_keys_reaches_the_attention():
    """AnyFlow's causal model, chunk by chunk: the second chunk sees what the cache holds of the first."""
    model, inputs = build("AnyFlowFARTransformer3DModel")
    heads, size = model.config.num_attention_heads, model.config.attention_head_dim
    cache = {
        name: torch.randn(2, 2, heads, 4, size, device=DEVICE) for name in ("compressed_cache", "full_cache")
    }
    inputs |= {"kv_cache": [cache], "kv_cache_flag": {"num_cached_chunks": 1, "is_cache_step": False}}
    inputs |= {key: inputs[key][:, 1:] for key in ("hidden_states", "timestep", "r_timestep")}
    with torch.no_grad(), set_backend("eager"):
        wanted = model(**inputs, return_dict=False)[0]
        apply_to(model, strict=True)
        found = model(**inputs, return_dict=False)[0]
        torch.testing.assert_close(found, wanted)
        cache["compressed_cache"].neg_()
        assert not torch.allclose(model(**inputs, return_dict=False)[0], wanted, atol=1e-3)
