"""What check_parity's plain step of a tiny model doesn't reach: sparse attention, other processors, caches."""

from functools import partial

import pytest
import torch
from parity import check_parity
from tiny_hunyuan_kin import kandinsky5
from tiny_models import KIN, build

from pgdpo_kernels import apply_to, set_backend

pytest.importorskip("diffusers")


def sparse_kandinsky5(dtype, monkeypatch):
    monkeypatch.setitem(KIN, "Kandinsky5Transformer3DModel", partial(kandinsky5, sparse=True))
    model, inputs = build("Kandinsky5Transformer3DModel", dtype)
    for block in model.visual_transformer_blocks:
        block.self_attention.set_attention_backend("flex")
    return model, inputs


def test_sparse_kandinsky5(monkeypatch):
    """Its sparse form moves the tokens, and with them the table that was laid out for the ops."""
    check_parity(*sparse_kandinsky5(torch.float32, monkeypatch), torch.float32, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sparse_kandinsky5_kernels(dtype, monkeypatch):
    check_parity(*sparse_kandinsky5(dtype, monkeypatch), dtype, "triton")


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
