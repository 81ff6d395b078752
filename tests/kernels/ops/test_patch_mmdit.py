"""What people do with models of joint text and image streams, patched: adapters, caches, fused projections, ranks."""

import copy

import pytest
import torch
from op_oracle import DEVICE
from tiny_models import build, step

from pgdpo_kernels import apply_to, revert, set_backend

pytest.importorskip("diffusers")
BLOCKS = ("norm_modulate", "gate_residual", "gate_residual_norm_modulate")


@pytest.fixture(autouse=True)
def eager():
    """The ops' eager maths: what is asked here is which op is handed what."""
    with set_backend("eager"):
        yield


def output(model, inputs, **more):
    with torch.no_grad():
        return model(**inputs | more, return_dict=False)[0]


def check_same(model, inputs, **more):
    """Untouched, patched, and untouched again."""
    theirs = output(model, inputs, **more)
    assert apply_to(model, strict=True)
    torch.testing.assert_close(output(model, inputs, **more), theirs, rtol=1e-4, atol=1e-5)
    revert(model)
    assert torch.equal(output(model, inputs, **more), theirs)


def ip_adapter(model):
    """The adapter's processors on the dual blocks, as diffusers' loader makes them."""
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    torch.manual_seed(1)
    for block in model.transformer_blocks:
        block.attn.set_processor(FluxIPAdapterAttnProcessor(32, 8))
    for name, parameter in model.named_parameters():
        if "_ip" in name:
            parameter.data = torch.randn_like(parameter)
    model.to(DEVICE)
    return {"joint_attention_kwargs": {"ip_hidden_states": [torch.randn(2, 4, 8, device=DEVICE)]}}


def test_an_ip_adapter_keeps_its_processor_and_its_branch():
    model, inputs = build("FluxTransformer2DModel")
    plain, adapter = output(model, inputs), ip_adapter(model)
    with pytest.raises(TypeError, match="attn.processor is a FluxIPAdapterAttnProcessor"):
        apply_to(model, strict=True)
    theirs = output(model, inputs, **adapter)
    assert not torch.allclose(theirs, plain, atol=1e-2)
    apply_to(model, ops=BLOCKS, strict=True)
    torch.testing.assert_close(output(model, inputs, **adapter), theirs, rtol=1e-4, atol=1e-5)


def test_an_ip_adapter_after_the_patch():
    """diffusers' loader makes the single blocks' processors anew, of the class that it finds and without arguments."""
    model, inputs = build("FluxTransformer2DModel")
    untouched = copy.deepcopy(model)
    theirs = output(untouched, inputs, **ip_adapter(untouched))
    apply_to(model, strict=True)
    for block in model.single_transformer_blocks:
        block.attn.set_processor(type(block.attn.processor)())
    ours = output(model, inputs, **ip_adapter(model))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "Flux3Transformer2DModel"])
def test_fused_projections(name):
    model, inputs = build(name)
    with torch.no_grad():
        model.fuse_qkv_projections()
    check_same(model, inputs)


@pytest.mark.parametrize("name", ["AuraFlowTransformer2DModel", "SD3Transformer2DModel"])
def test_fused_processors(name):
    """Theirs for fused projections are other classes, and SD3's norms neither q nor k."""
    model, inputs = build(name)
    with torch.no_grad():
        model.fuse_qkv_projections()
    check_same(model, inputs)


def test_chunked_feed_forward():
    model, inputs = build("SD3Transformer2DModel")
    model.enable_forward_chunking(chunk_size=1, dim=0)
    check_same(model, inputs)
    apply_to(model, strict=True)
    model.transformer_blocks[0].set_chunk_feed_forward(3, dim=1)
    with pytest.raises(ValueError, match="divisible by chunk size"):
        output(model, inputs)


@pytest.mark.parametrize(
    "name", ["FluxTransformer2DModel", "Flux2Transformer2DModel", "QwenImageTransformer2DModel"]
)
def test_gradient_checkpointing_changes_no_bit(name):
    model, inputs = build(name)
    apply_to(model, strict=True)
    plain = step(model, inputs)
    model.enable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(plain, step(model, inputs), strict=True))


def test_flux2_keeps_the_processors_with_a_cache():
    """Reference tokens have a modulation of their own: a vector for each token."""
    from diffusers.models.transformers.transformer_flux2 import (
        Flux2KVAttnProcessor,
        Flux2KVParallelSelfAttnProcessor,
    )

    model, inputs = build("Flux2Transformer2DModel")
    model.transformer_blocks[0].attn.set_processor(Flux2KVAttnProcessor())
    model.single_transformer_blocks[0].attn.set_processor(Flux2KVParallelSelfAttnProcessor())
    with pytest.raises(TypeError, match="attn.processor is a Flux2KVAttnProcessor"):
        apply_to(model, strict=True)
    cache = {"kv_cache_mode": "extract", "num_ref_tokens": 2}
    theirs = output(model, inputs, **cache)
    apply_to(model, ops=BLOCKS, strict=True)
    torch.testing.assert_close(output(model, inputs, **cache), theirs, rtol=1e-4, atol=1e-5)


def test_qwen_image_21_caches_turned_keys():
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

    def decoded(model):
        cache = QwenImage21KVCache(1)
        first = output(model, inputs, kv_cache=cache, kv_cache_mode="extract")
        later = inputs | {"timestep": inputs["timestep"] / 2}
        return (
            first,
            cache.get_layer(0).get()[0],
            output(model, later, kv_cache=cache, kv_cache_mode="cached"),
        )

    model, inputs = build("QwenImage21Transformer2DModel")
    theirs = decoded(model)
    apply_to(model, strict=True)
    torch.testing.assert_close(decoded(model), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "QwenImageTransformer2DModel"])
def test_a_rank_has_its_share_of_the_heads(name):
    """Tensor parallelism cuts the projections' rows and leaves `attn.heads`: the first of two heads, on a rank."""
    model, inputs = build(name)
    attn = model.transformer_blocks[0].attn
    for projection in (attn.to_q, attn.to_k, attn.to_v, attn.add_q_proj, attn.add_k_proj, attn.add_v_proj):
        projection.weight.data, projection.bias.data = projection.weight.data[:16], projection.bias.data[:16]
    for projection in (attn.to_out[0], attn.to_add_out):
        projection.weight.data = projection.weight.data[:, :16]
    check_same(model, inputs)


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "QwenImageTransformer2DModel"])
def test_fp16_stays_finite(name):
    """Residual streams beyond fp16 are clipped where diffusers clips them."""
    model, inputs = build(name, torch.float16)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].sign()
    last = model.context_embedder if name.startswith("Flux") else model.txt_in
    last.bias.data = torch.full_like(last.bias, 6e4)
    for block in model.transformer_blocks:
        out = block.ff_context if name.startswith("Flux") else block.txt_mlp
        out.net[2].bias.data = torch.full_like(out.net[2].bias, 6e4)
        modulation = block.norm1_context.linear if name.startswith("Flux") else block.txt_mod[1]
        modulation.bias.data[-32:] = 1.0
    kept = []
    block = model.transformer_blocks[-1]
    block.register_forward_hook(lambda _module, _args, streams: kept.append(streams[0]))
    output(model, inputs)
    apply_to(model, strict=True)
    output(model, inputs)
    assert kept[0].isfinite().all() and (kept[0] == 65504).any()
    assert torch.equal(kept[1] == 65504, kept[0] == 65504)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "QwenImageTransformer2DModel"])
def test_compiles_whole(name):
    model, inputs = build(name)
    apply_to(model, strict=True)
    plain = output(model, inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(output(compiled, inputs), plain, rtol=1e-5, atol=1e-5)
