"""What check_parity's plain step of a tiny model doesn't reach: sparse attention, other processors, caches."""

import pytest
import torch
from parity import check_parity
from tiny_hunyuan_kin import SPARSE
from tiny_models import KIN, build

from pgdpo_kernels import apply_to, set_backend

pytest.importorskip("diffusers")


@pytest.fixture
def dense(monkeypatch):
    """Attention of all to all in place of flex attention, which has no backward on a CPU."""
    from diffusers.models import attention_dispatch
    from diffusers.models.transformers import transformer_kandinsky, transformer_kandinsky6_sr

    from pgdpo_kernels.patch.video import kandinsky5

    original = attention_dispatch.dispatch_attention_fn

    def attend(*args, attn_mask=None, backend=None, **kwargs):
        return original(*args, **kwargs)

    for module in (transformer_kandinsky, transformer_kandinsky6_sr, kandinsky5):
        monkeypatch.setattr(module, "dispatch_attention_fn", attend)


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_attention(name, dense, monkeypatch):
    """Kandinsky 5's sparse form moves the tokens, and with them the table that was laid out for the ops."""
    monkeypatch.setitem(KIN, name, SPARSE[name])
    replaced, _, _ = check_parity(*build(name), torch.float32, "eager")
    assert "visual_rope_embeddings.forward" in replaced


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", SPARSE)
def test_sparse_attention_kernels(name, dtype, dense, monkeypatch):
    monkeypatch.setitem(KIN, name, SPARSE[name])
    check_parity(*build(name, dtype), dtype, "triton")


def frozen_frequencies(dtype):
    model, inputs = build("MochiTransformer3DModel", dtype)
    model.pos_frequencies.requires_grad_(False)
    return model, inputs


def test_mochi_frozen_frequencies():
    """The op rotates where no gradient goes to the table, which has an entry for every head."""
    check_parity(*frozen_frequencies(torch.float32), torch.float32, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mochi_frozen_frequencies_kernels(dtype):
    check_parity(*frozen_frequencies(dtype), dtype, "triton")


def test_training_processor_of_cogview4_stays():
    from diffusers.models.transformers.transformer_cogview4 import CogView4TrainingAttnProcessor

    model, inputs = build("CogView4Transformer2DModel")
    for block in model.transformer_blocks:
        block.attn1.set_processor(CogView4TrainingAttnProcessor())
    assert apply_to(model, strict=True) == ["transformer_blocks.0.forward"]
    inputs["attention_kwargs"] = {"batch_flag": torch.tensor([0, 0])}
    inputs["image_rotary_emb"] = [model.rope(inputs["hidden_states"])] * 2
    model(**inputs)
    assert isinstance(model.transformer_blocks[0].attn1.processor, CogView4TrainingAttnProcessor)


def test_cache_of_glm_image():
    """What a pass with condition images writes, and a pass that reads it gives."""
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    model, inputs = build("GlmImageTransformer2DModel")
    del inputs["attention_mask"]  # it has no room for the cache

    def passes():
        cache = GlmImageKVCache(1)
        outputs = []
        for mode in ("write", "read"):
            cache.set_mode(mode)
            outputs.append(model(**inputs, kv_caches=cache).sample)
        return *outputs, cache[0].k_caches[0]

    with torch.no_grad(), set_backend("eager"):
        untouched = passes()
        apply_to(model, strict=True)
        patched = passes()
    for a, b in zip(untouched, patched, strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(*patched[:2])
