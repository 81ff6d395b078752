"""`apply_to` beside what trainers do to models: adapters, checkpointing, compilation, fused projections, hooks."""

import copy
import logging
import pickle
import warnings

import pytest
import torch
from tiny_models import build, step

from pgdpo_kernels import apply_to, revert, set_backend

pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
LORA = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v", "to_out.0"])


@pytest.fixture(autouse=True)
def triton():
    with set_backend("triton"):
        yield


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def adapted(model):
    torch.manual_seed(3)
    model.add_adapter(LORA)
    return model


def test_lora_before_or_after():
    model, inputs = build("wan", torch.bfloat16)
    before = copy.deepcopy(model)
    assert apply_to(adapted(model), strict=True) == ["blocks.0.forward", "blocks.0.attn1.processor"]
    apply_to(before, strict=True)
    first = step(model, inputs)
    assert same(first, step(adapted(before), inputs))
    assert len(first) == 2 + 16, "frozen parameters get no gradient"
    revert(model)
    assert not same(first, step(model, inputs))


def test_peft_wrapper():
    model, inputs = build("cogvideox", torch.bfloat16)
    wrapped = peft.get_peft_model(model, LORA)
    assert apply_to(wrapped, strict=True) == apply_to(model, strict=True)
    revert(wrapped)
    assert "forward" not in model.transformer_blocks[0].__dict__


def test_gradient_checkpointing_changes_no_bit():
    model, inputs = build("wan", torch.bfloat16)
    apply_to(model, strict=True)
    plain = step(model, inputs)
    model.enable_gradient_checkpointing()
    assert same(plain, step(model, inputs))


def test_a_copy_is_its_own():
    model, inputs = build("ltx", torch.bfloat16)
    eager = step(model, inputs)
    apply_to(model, strict=True)
    fused = step(model, inputs)
    clone = copy.deepcopy(model)
    revert(clone)
    assert same(step(clone, inputs), eager)
    assert same(step(model, inputs), fused)


def test_a_pickle_is_refused():
    """Its blocks would come back with diffusers' own forward, and no longer be what `revert` looks for."""
    model, _ = build("wan")
    apply_to(model, strict=True)
    with pytest.raises(TypeError, match="revert"):
        pickle.dumps(model)
    revert(model)
    pickle.loads(pickle.dumps(model))


def test_chosen_ops(caplog):
    model, inputs = build("wan", torch.bfloat16)
    caplog.set_level(logging.INFO, "pgdpo_kernels")
    assert apply_to(model, ops=["qk_norm_rope"]) == ["blocks.0.attn1.processor"]
    assert "blocks.0.attn1.processor" in caplog.text
    assert apply_to(model, ops="gate_residual") == ["blocks.0.forward"]
    assert type(model.blocks[0].attn1.processor).__name__ == "WanAttnProcessor"
    with pytest.raises(ValueError, match="unknown ops .'attention'.*norm_modulate"):
        apply_to(model, ops=["attention"])


def test_unknown_models_stay_as_they_are():
    with pytest.warns(UserWarning, match="Linear is left as it is: it is none of diffusers"):
        assert apply_to(torch.nn.Linear(2, 2)) == []
    with pytest.raises(TypeError, match="cannot patch Linear"):
        apply_to(torch.nn.Linear(2, 2), strict=True)


def test_unknown_code_of_a_known_class_is_refused(monkeypatch):
    """Another version of diffusers: the code that the patch stands in for is not the code that it knows."""
    from pgdpo_kernels.patch.video import wan

    def forward(self, hidden_states):
        return hidden_states

    monkeypatch.setattr(wan, "SOURCES", {forward: next(iter(wan.SOURCES.values()))})
    model, _ = build("wan")
    with pytest.raises(TypeError, match="forward of diffusers .* is not known here"):
        apply_to(model, strict=True)
    with pytest.warns(UserWarning, match="is not known here"):
        assert apply_to(model) == []
    assert "forward" not in model.blocks[0].__dict__


def test_hooked_blocks_and_foreign_processors_are_refused():
    model, _ = build("wan")
    model.blocks[0].forward = model.blocks[0].forward
    with pytest.raises(TypeError, match="blocks.0.forward is replaced already"):
        apply_to(model, strict=True)
    del model.blocks[0].forward
    model.blocks[0].attn1.set_processor(lambda *a, **k: None)
    with pytest.raises(TypeError, match="blocks.0.attn1.processor is a function"):
        apply_to(model, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_to(model, ops="norm_modulate")


def test_attention_backends_pass_through():
    """diffusers keeps the backend on the processor, whether set before or after."""
    model, _ = build("wan")
    model.set_attention_backend("native")
    original = model.blocks[0].attn1.processor
    apply_to(model, strict=True)
    assert model.blocks[0].attn1.processor._attention_backend == original._attention_backend == "native"
    model.set_attention_backend("_native_math")
    assert model.blocks[0].attn1.processor._attention_backend == "_native_math"
    revert(model)
    assert model.blocks[0].attn1.processor is original
    assert original._attention_backend == "_native_math"
    model.reset_attention_backend()


def test_xformers_backend(monkeypatch):
    """xformers has no CPU operator: its entry is replaced by the attention that it computes."""
    from diffusers.models import attention_dispatch

    def attention(query, key, value, *args, **kwargs):
        seen.append(query.shape)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    seen = []
    xops = pytest.importorskip("xformers.ops")
    monkeypatch.setattr(attention_dispatch, "xops", xops, raising=False)
    monkeypatch.setattr(xops, "memory_efficient_attention", attention)
    model, inputs = build("wan", torch.bfloat16)
    apply_to(model, strict=True)
    native = step(model, inputs)
    model.set_attention_backend("xformers")
    try:
        xformers = step(model, inputs)
    finally:
        model.set_attention_backend("native")
        model.reset_attention_backend()
    assert seen
    torch.testing.assert_close(xformers[0], native[0], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("family", ["wan", "cogvideox"])
def test_fused_projections(family):
    model, inputs = build(family, torch.float32)
    apply_to(model, strict=True)
    with torch.no_grad():
        apart = model(**inputs, return_dict=False)[0]
        revert(model)
        model.fuse_qkv_projections()
        apply_to(model, strict=True)
        fused = model(**inputs, return_dict=False)[0]
    torch.testing.assert_close(fused, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["wan", pytest.param("cogvideox", marks=pytest.mark.slow)])
def test_compiles_whole(family):
    model, inputs = build(family)
    apply_to(model, strict=True)
    plain = step(model, inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    latents = inputs["hidden_states"].detach().requires_grad_()
    output = compiled(**inputs | {"hidden_states": latents}, return_dict=False)[0]
    torch.testing.assert_close(output, plain[0], rtol=1e-5, atol=1e-5)
    slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    torch.testing.assert_close(torch.autograd.grad(output, latents, slope)[0], plain[1], rtol=1e-4, atol=1e-5)
