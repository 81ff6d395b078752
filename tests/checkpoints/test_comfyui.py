"""ComfyUI's names: against lists of the original models' layers, and back through diffusers' own reader."""

import re

import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from pgdpo.models.adapters.comfyui import comfyui_state
from tests.models.families import KINDS
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")

TARGETS = [
    "to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    "proj_mlp",
]  # fmt: skip


NAMED = [name for name, kind in KINDS.items() if kind.original]


def with_adapter(name: str, saved, targets: list[str], alpha: float = 6):
    """(the names of a kind's layers in ComfyUI, its tiny transformer, a LoRA of rank 2 with random numbers)."""
    family = KINDS[name].open(saved(KINDS[name].save))
    model = family.load_transformer(dtype=torch.float32)
    model.add_adapter(LoraConfig(r=2, lora_alpha=alpha, target_modules=targets))
    torch.manual_seed(1)
    state = {key: torch.randn_like(tensor) for key, tensor in get_peft_model_state_dict(model).items()}
    return family.comfyui, model, state


@pytest.mark.parametrize("name", NAMED)
def test_names_are_the_original_layers(name, saved):
    """Of the first blocks: the others differ by their number."""
    converted = comfyui_state(*with_adapter(name, saved, TARGETS), 3.0)
    first = {key for key in converted if not re.search(r"blocks\.[1-9]", key)}
    wanted = {
        f"diffusion_model.{layer}.lora_{side}.weight"
        for layer in KINDS[name].original.split()
        for side in "AB"
    }
    assert first == wanted


def test_a_kind_has_all_its_layers_named_or_none(saved):
    for kind in KINDS.values():
        assert bool(kind.original) == bool(kind.open(saved(kind.save)).comfyui)


def test_a_fused_layer_is_the_sum_of_its_parts(saved):
    """to_k has no adapter: its rows stay zero; qkv in the original is q, k, v one below the other."""
    rows, model, state = with_adapter("hunyuan_video", saved, ["to_q", "to_v", "proj_mlp"])
    converted = comfyui_state(rows, model, state, 3.0)

    def update(block: str, module: str) -> torch.Tensor:
        name = f"{block}.{module}"
        if f"{name}.lora_A.weight" not in state:
            return torch.zeros_like(model.get_submodule(name).weight)
        return 3.0 * state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]

    for layer, block, parts in [
        ("double_blocks.0.img_attn_qkv", "transformer_blocks.0", ["attn.to_q", "attn.to_k", "attn.to_v"]),
        (
            "single_blocks.0.linear1",
            "single_transformer_blocks.0",
            ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
        ),
    ]:
        down, up = (converted[f"diffusion_model.{layer}.lora_{side}.weight"] for side in "AB")
        torch.testing.assert_close(up @ down, torch.cat([update(block, part) for part in parts]))


@pytest.mark.parametrize("name", NAMED)
def test_a_layer_without_a_name_is_refused(name, saved):
    rows, model, state = with_adapter(name, saved, ["to_q"])
    state["norm_out.lora_A.weight"] = torch.zeros(2, 2)
    with pytest.raises(InputError, match="`norm_out` has no name in ComfyUI"):
        comfyui_state(rows, model, state, 1.0)


def test_the_command_and_diffusers_reader_of_such_files(config_file, tmp_path):
    """diffusers reads the ComfyUI file back into what the diffusers file holds."""
    from diffusers import WanPipeline

    run_pgdpo("train", config_file, "model.adapter.alpha=8")
    formats = [f"--format={name}" for name in ("diffusers", "comfyui", "merged")]
    run_pgdpo("export", config_file, "model.adapter.alpha=8", *formats)
    folder = config_file.parent / "out" / "dpo" / "export"
    lora = load_file(folder / "pytorch_lora_weights.safetensors")
    read, _ = WanPipeline.lora_state_dict(
        folder, weight_name="dpo-comfyui.safetensors", return_lora_metadata=True
    )
    assert set(read) == set(lora)
    merged = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    base = WanTransformer3DModel.from_pretrained(load_config(config_file).model.path, subfolder="transformer")
    for name in {key.rsplit(".lora_", 1)[0] for key in lora}:
        ours = 2.0 * lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
        theirs = read[f"{name}.lora_B.weight"] @ read[f"{name}.lora_A.weight"]
        torch.testing.assert_close(ours, theirs)
        module = name.removeprefix("transformer.")
        torch.testing.assert_close(merged[f"{module}.weight"], base.get_submodule(module).weight + ours)
    assert set(merged) == set(base.state_dict())
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert '"beta": 500' in card and "LoRA of rank 4, alpha 8" in card
