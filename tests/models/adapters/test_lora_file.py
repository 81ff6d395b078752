"""LoRA files under everybody's names, put into a fresh adapter: equal predictions, errors that say what to write."""

import functools
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from pgdpo.config import AdapterConfig
from pgdpo.messages.errors import InputError
from pgdpo.models.adapters.adapter import (
    adapter_metadata,
    adapter_state,
    add_adapter,
    load_adapter_state,
    start_from,
)
from pgdpo.models.adapters.comfyui import comfyui_state
from pgdpo.models.adapters.lora_file import open_lora
from tests.models.families import FAMILIES

TARGETS = ["to_q", "to_v", "to_out.0", "net.0.proj", "add_k_proj", "proj_mlp"]


@pytest.fixture(scope="module")
def opened(saved):
    """Family name -> (the opened family, a LoRA of rank 2 and alpha 6 with random numbers, its metadata)."""

    @functools.cache
    def open_family(name):
        family = FAMILIES[name].open(saved(FAMILIES[name].save))
        transformer = with_adapter(family, AdapterConfig(rank=2, alpha=6, target_modules=TARGETS))
        torch.manual_seed(1)
        state = {key: torch.randn_like(tensor) for key, tensor in adapter_state(transformer).items()}
        return family, state, adapter_metadata(transformer)

    return open_family


def with_adapter(family, adapter, seed=0):
    transformer = family.load_transformer(dtype=torch.float32)
    add_adapter(transformer, adapter, seed)
    return transformer.eval()


def started(family, path, **changes):
    adapter = AdapterConfig(**{"rank": 2, "alpha": 6, "target_modules": TARGETS, "init": path, **changes})
    transformer = with_adapter(family, adapter)
    start_from(transformer, open_lora(family, adapter), adapter)
    return transformer


def predicted(family, transformer):
    generator = torch.Generator().manual_seed(2)
    noisy = torch.randn(2, transformer.config.in_channels, 3, 4, 4, generator=generator)
    conditioning = {
        name: torch.ones_like(t) if t.dtype == torch.bool else torch.randn(t.shape, generator=generator)
        for name, t in family.example_conditioning(2, noisy.shape[1:]).items()
    }
    with torch.no_grad():
        return family.predict(transformer, noisy, torch.tensor([0.3, 0.8]), conditioning)


def trained(family, state):
    transformer = with_adapter(family, AdapterConfig(rank=2, alpha=6, target_modules=TARGETS))
    load_adapter_state(transformer, state)
    return transformer


@pytest.mark.parametrize("name", FAMILIES)
def test_exports_start_where_the_trained_model_stands(opened, tmp_path, name):
    """Ours to the bit; ComfyUI's, fused layers and all, to rounding: at the file's rank, and at a larger one."""
    family, state, metadata = opened(name)
    wanted = predicted(family, trained(family, state))
    family.save_adapter(tmp_path / "ours", state, metadata)
    ours = started(family, tmp_path / "ours")
    assert all(torch.equal(tensor, state[key]) for key, tensor in adapter_state(ours).items())
    assert torch.equal(predicted(family, ours), wanted)
    assert not torch.allclose(
        predicted(family, with_adapter(family, AdapterConfig(rank=2))), wanted, atol=1e-2
    )
    larger = started(family, tmp_path / "ours", rank=5, alpha=5)
    torch.testing.assert_close(predicted(family, larger), wanted, rtol=1e-5, atol=1e-5)
    fresh = adapter_state(with_adapter(family, AdapterConfig(rank=5, target_modules=TARGETS)))
    for key, tensor in adapter_state(larger).items():
        if key.endswith("lora_A.weight"):
            assert torch.equal(tensor[2:], fresh[key][2:]) and tensor[2:].any()
        else:
            assert not tensor[:, 2:].any()
    if family.comfyui:
        file = tmp_path / "comfyui.safetensors"
        save_file(
            comfyui_state(family.comfyui, family.load_transformer(dtype=torch.float32), state, 3.0), file
        )
        theirs = started(family, file)  # of its true rank: the blocks of fused layers come apart
        torch.testing.assert_close(predicted(family, theirs), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["plain", "alphas", "kohya", "peft"])
def test_alpha_and_names_of_other_trainers(opened, tmp_path, form):
    """Tensors named alpha, underscores for dots, peft's own prefix; without any alpha it is the rank."""
    family, state, _ = opened("wan")
    named = {}
    for key, tensor in state.items():
        module, side = key.removesuffix(".weight").split(".lora_")
        layer = {
            "plain": f"transformer.{module}",
            "alphas": f"diffusion_model.{module}",
            "kohya": "lora_unet_" + module.replace(".", "_"),
            "peft": f"base_model.model.{module}",
        }[form]
        side = {"A": "lora_down", "B": "lora_up"}[side] if form == "kohya" else f"lora_{side}"
        named[f"{layer}.{side}.weight"] = tensor
        if form in ("alphas", "kohya"):
            named[f"{layer}.alpha"] = torch.tensor(6.0)
    save_file(named, tmp_path / "lora.safetensors")
    alpha = 6 if form in ("alphas", "kohya") else 2
    transformer = started(family, tmp_path, alpha=alpha)
    assert all(torch.equal(tensor, state[key]) for key, tensor in adapter_state(transformer).items())


def test_a_fused_lora_of_one_rank_is_taken_apart(opened, tmp_path):
    """One A for q, k and v, as trainers of the original model make it; k is zero and stays without a LoRA."""
    family, _, _ = opened("hunyuan_video")
    width = 32
    down, up = torch.randn(3, width), torch.randn(3 * width, 3)
    up[width : 2 * width] = 0
    name = "diffusion_model.double_blocks.0.img_attn_qkv"
    save_file(
        {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up, f"{name}.alpha": torch.tensor(6.0)},
        tmp_path / "fused.safetensors",
    )
    updates = open_lora(family, AdapterConfig(rank=3, target_modules=["to_q", "to_v"], init=tmp_path))
    block = "transformer_blocks.0.attn"
    assert set(updates) == {f"{block}.to_q", f"{block}.to_v"}
    for part, rows in (("to_q", up[:width]), ("to_v", up[2 * width :])):
        update = updates[f"{block}.{part}"]
        torch.testing.assert_close(update.scale * update.up @ update.down, 2 * rows @ down)


Q = "transformer.blocks.0.attn1.to_q"


def pair(rank=2, inputs=32, layer=Q):
    return {
        f"{layer}.lora_A.weight": torch.ones(rank, inputs),
        f"{layer}.lora_B.weight": torch.ones(32, rank),
    }


A, B = pair()
MISFITS = {
    "rank": (pair(rank=3), r"model.adapter.rank is 2: .* has rank 3 .*: set model.adapter.rank to 3 or more"),
    "layer": (
        pair(layer="transformer.blocks.0.attn1.to_k"),
        r"target_modules is \['to_q'.*leave out \(`blocks.0.attn1.to_k`.*set it to \[to_q, .*, attn1.to_k\]",
    ),
    "shape": (
        pair(inputs=16),
        "16 inputs and 32 outputs, this model's has 32 and 32: it is a LoRA of another model",
    ),
    "matrices": ({**pair(), A: torch.ones(1, 32)}, "which are no matrices of one rank"),
    "half": ({A: pair()[A]}, "has no lora_B"),
    "alpha": ({**pair(), f"{Q}.alpha": torch.tensor(0.0)}, "alpha of `blocks.0.attn1.to_q` is 0.0"),
    "twice": (pair() | pair(layer=Q.removeprefix("transformer.")), "two LoRAs of `blocks.0.attn1.to_q`"),
    "diff": ({**pair(), "blocks.0.norm3.diff": torch.ones(2)}, "it also holds `blocks.0.norm3.diff`"),
    "dora": (
        {**pair(), f"{Q}.lora_magnitude_vector": torch.ones(32)},
        "it also holds .*lora_magnitude_vector",
    ),
    "nan": ({**pair(), A: torch.full((2, 32), torch.nan)}, "not finite"),
    "weights": (
        {"blocks.0.attn1.to_q.weight": torch.ones(32, 32)},
        "no LoRA of this model is in it: it holds .*named as `condition_embedder.*` or `time_embedding.0`",
    ),
    "block": (pair(layer="blocks.9.attn1.to_q"), "no LoRA of this model is in it: it holds `blocks.9"),
    "zeros": ({"diffusion_model.blocks.0.norm3.diff": torch.zeros(2)}, "no LoRA is in it"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_one_error(opened, tmp_path, case):
    tensors, message = MISFITS[case]
    family, _, _ = opened("wan")
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file)
    with pytest.raises(InputError, match=message) as refused:
        open_lora(family, AdapterConfig(rank=2, target_modules=TARGETS, init=file))
    assert "\n" not in str(refused.value) and str(refused.value).startswith("model.adapter.")


def test_files_that_are_none(opened, tmp_path):
    family, state, metadata = opened("wan")

    def refused(init, message):
        with pytest.raises(InputError, match=message):
            open_lora(family, AdapterConfig(rank=2, target_modules=TARGETS, init=init))

    refused(tmp_path / "nowhere", "model.adapter.init is '.*nowhere': it is not there")
    refused(tmp_path, "no safetensors file is in it")
    torch.save(state, tmp_path / "lora.pt")
    refused(tmp_path / "lora.pt", "no whole safetensors file")
    family.save_adapter(tmp_path / "run/export", state, metadata)
    refused(tmp_path / "run", "no safetensors file is in it .*run/export is there")
    whole = (tmp_path / "run/export/pytorch_lora_weights.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-10])
    refused(tmp_path, "cut.safetensors is no whole safetensors file")
    (tmp_path / "b.safetensors").write_bytes(whole)
    refused(tmp_path, "it holds b.safetensors, cut.safetensors: name the one that is meant")
    save_file(state, tmp_path / "told.safetensors", {"lora_adapter_metadata": json.dumps([1])})
    refused(tmp_path / "told.safetensors", "lora_adapter_metadata is no JSON object")


def test_a_start_from_other_weights_of_the_same_architecture(opened, tmp_path):
    """`model.transformer`: its own folder or the export around it; what is no such transformer is refused."""
    family, _, _ = opened("wan")
    source = family.model.path
    transformer = family.load_transformer(dtype=torch.float32)
    transformer.proj_out.bias.data += 1
    transformer.save_pretrained(tmp_path / "export/transformer")
    for given in (tmp_path / "export", tmp_path / "export/transformer"):
        other = FAMILIES["wan"].open(source, transformer=given)
        loaded = other.load_transformer(dtype=torch.float32)
        assert all(
            torch.equal(a, b) for a, b in zip(loaded.parameters(), transformer.parameters(), strict=True)
        )
        assert other.fingerprint("transformer") != family.fingerprint("transformer")
    shutil.copytree(f"{source}/transformer", tmp_path / "same")
    same = FAMILIES["wan"].open(source, transformer=tmp_path / "same")
    assert same.fingerprint("transformer") == family.fingerprint("transformer")
    for change, message in [
        (None, "neither transformer/config.json nor config.json is there"),
        ({"_class_name": "LTXVideoTransformer3DModel"}, "it is a LTXVideo.*needs a WanTransformer3DModel"),
        ({"num_layers": 3}, r"it is another architecture than model.path's \(num_layers is 3, there 2\)"),
    ]:
        file = tmp_path / "export/transformer/config.json"
        config = json.loads(file.read_text())
        file.unlink() if change is None else file.write_text(json.dumps(config | change))
        with pytest.raises(InputError, match=f"model.transformer is '.*export': {message}"):
            FAMILIES["wan"].open(source, transformer=tmp_path / "export")
        file.write_text(json.dumps(config))
