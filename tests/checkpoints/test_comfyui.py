"""ComfyUI's names: against lists of the original models' layers, and back through diffusers' own reader."""

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, LTXVideoTransformer3DModel, WanTransformer3DModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from pgdpo.config import family_class
from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from pgdpo.models.adapters.comfyui import comfyui_state
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")

# The linear layers of one block in the repositories that ComfyUI takes its models from.
REFERENCE = {
    "wan": (
        "blocks.0.self_attn.q blocks.0.self_attn.k blocks.0.self_attn.v blocks.0.self_attn.o blocks.0.cross_attn.q "
        "blocks.0.cross_attn.k blocks.0.cross_attn.v blocks.0.cross_attn.o blocks.0.ffn.0 blocks.0.ffn.2"
    ),
    "hunyuan_video": (
        "double_blocks.0.img_attn_qkv double_blocks.0.img_attn_proj double_blocks.0.txt_attn_qkv "
        "double_blocks.0.txt_attn_proj double_blocks.0.img_mlp.fc1 double_blocks.0.img_mlp.fc2 "
        "double_blocks.0.txt_mlp.fc1 double_blocks.0.txt_mlp.fc2 single_blocks.0.linear1 "
        "txt_in.individual_token_refiner.blocks.0.self_attn_qkv "
        "txt_in.individual_token_refiner.blocks.0.self_attn_proj "
        "txt_in.individual_token_refiner.blocks.0.mlp.fc1 txt_in.individual_token_refiner.blocks.0.mlp.fc2"
    ),
    "ltx": (
        "transformer_blocks.0.attn1.to_q transformer_blocks.0.attn1.to_k transformer_blocks.0.attn1.to_v "
        "transformer_blocks.0.attn1.to_out.0 transformer_blocks.0.attn2.to_q transformer_blocks.0.attn2.to_k "
        "transformer_blocks.0.attn2.to_v transformer_blocks.0.attn2.to_out.0 transformer_blocks.0.ff.net.0.proj "
        "transformer_blocks.0.ff.net.2"
    ),
}
TARGETS = [
    "to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    "proj_mlp",
]  # fmt: skip


MODELS = {
    "wan": lambda: WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=8, ffn_dim=16,
        num_layers=1,
    ),
    "hunyuan_video": lambda: HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=1, attention_head_dim=8, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, text_embed_dim=8, pooled_projection_dim=8, rope_axes_dim=(2, 2, 4),
    ),
    "ltx": lambda: LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=1, attention_head_dim=8, cross_attention_dim=8, num_layers=1,
        caption_channels=8,
    ),
}  # fmt: skip


def with_adapter(family: str, targets: list[str], alpha: float = 6):
    """(a tiny transformer, its LoRA of rank 2 with random numbers)."""
    model = MODELS[family]()
    model.add_adapter(LoraConfig(r=2, lora_alpha=alpha, target_modules=targets))
    torch.manual_seed(1)
    return model, {k: torch.randn_like(v) for k, v in get_peft_model_state_dict(model).items()}


@pytest.mark.parametrize("family", REFERENCE)
def test_names_are_the_original_layers(family):
    model, state = with_adapter(family, TARGETS)
    converted = comfyui_state(family_class(family).comfyui, model, state, 3.0)
    wanted = {
        f"diffusion_model.{layer}.lora_{side}.weight" for layer in REFERENCE[family].split() for side in "AB"
    }
    assert set(converted) == wanted


def test_a_fused_layer_is_the_sum_of_its_parts():
    """to_k has no adapter: its rows stay zero; qkv in the original is q, k, v one below the other."""
    model, state = with_adapter("hunyuan_video", ["to_q", "to_v", "proj_mlp"])
    converted = comfyui_state(family_class("hunyuan_video").comfyui, model, state, 3.0)

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


def test_a_layer_without_a_name_is_refused():
    model, state = with_adapter("wan", ["to_q"])
    state["patch_embedding.lora_A.weight"] = torch.zeros(2, 2)
    with pytest.raises(InputError, match="`patch_embedding` has no name in ComfyUI"):
        comfyui_state(family_class("wan").comfyui, model, state, 1.0)


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
