"""What leaves the trainer is read by diffusers alone."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgdpo.checkpoints.export import export, load_trained
from pgdpo.checkpoints.runs import open_run
from pgdpo.checkpoints.shards import ShardReader
from pgdpo.config.read import load_config
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")


def test_diffusers_alone_predicts_the_same_from_the_export(config_file):
    """Loaded as a user of diffusers would, who has no part of this package."""
    from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    run_pgdpo("train", config_file)
    run_pgdpo("export", config_file)
    config = load_config(config_file)
    family, trained = load_trained(open_run(config))
    hidden, text, told = torch.randn(2, 48, 4, 4, 4), torch.randn(2, 8, 64), torch.tensor([250.0, 900.0])
    inputs = {"hidden_states": hidden, "encoder_hidden_states": text, "timestep": told}
    transformer = WanTransformer3DModel.from_pretrained(config.model.path, subfolder="transformer").eval()
    scheduler = UniPCMultistepScheduler.from_pretrained(config.model.path, subfolder="scheduler")
    pipeline = WanPipeline(None, None, None, scheduler, transformer)
    with torch.no_grad():
        ours = family.predict(trained, hidden, told / 1000, {"prompt": text})
        base = transformer(**inputs, return_dict=False)[0]
        pipeline.load_lora_weights(config.run_dir / "export")
        theirs = transformer(**inputs, return_dict=False)[0]
    assert (ours - theirs).abs().max() == 0
    assert (base - theirs).abs().max() > 0  # the adapter does something


def test_whole_weights_leave_in_the_dtypes_they_came_in(config_file, tmp_path, tiny_wan):
    """Trained in fp32 from a bf16 checkpoint with one tensor in fp32: written so, rounded once, said, and read back."""
    from diffusers import WanTransformer3DModel

    base = tmp_path / "bf16"
    shutil.copytree(tiny_wan, base)
    file = base / "transformer" / "diffusion_pytorch_model.safetensors"
    stored = {name: t.bfloat16() if t.ndim > 1 else t for name, t in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    full = (f"model.path={base}", "model.adapter=null", "train.learning_rate=1e-2", "train.steps=1")
    run_pgdpo("train", config_file, *full)
    run_pgdpo("export", config_file, f"model.path={base}")
    run = config_file.parent / "out" / "dpo"
    written = load_file(run / "export" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {name: t.dtype for name, t in written.items()} == {name: t.dtype for name, t in stored.items()}
    trained = dict(ShardReader(run / "checkpoints" / "step-00000001", "weights"))
    assert all(torch.equal(written[name], trained[name].to(written[name].dtype)) for name in written)
    assert not torch.equal(written["proj_out.weight"], stored["proj_out.weight"])
    assert "| written in | bf16, some fp32 |" in (run / "export" / "README.md").read_text(encoding="utf-8")
    loaded = WanTransformer3DModel.from_pretrained(
        run / "export", subfolder="transformer", torch_dtype=torch.bfloat16
    )
    assert torch.equal(loaded.proj_out.weight, written["proj_out.weight"])


def test_a_merged_lora_is_added_to_the_stored_weights(config_file, tmp_path, tiny_wan):
    """Trained in bf16 on a base in fp32 with one tensor in bf16: each of its dtype, and no update is rounded away."""
    base = tmp_path / "stored"
    shutil.copytree(tiny_wan, base)
    file = base / "transformer" / "diffusion_pytorch_model.safetensors"
    stored = load_file(file)
    narrow = "blocks.0.attn1.to_v.weight"
    stored[narrow] = stored[narrow].bfloat16()
    save_file(stored, file, metadata={"format": "pt"})
    run_pgdpo("train", config_file, f"model.path={base}", "train.precision=bf16", "train.steps=1")
    run_pgdpo("export", config_file, "--format", "merged", "--format", "diffusers")
    export = config_file.parent / "out" / "dpo" / "export"
    written = load_file(export / "transformer" / "diffusion_pytorch_model.safetensors")
    lora = load_file(export / "pytorch_lora_weights.safetensors")
    assert written.keys() == stored.keys()
    for name, tensor in stored.items():
        module = f"transformer.{name.removesuffix('.weight')}"
        expected = tensor
        if f"{module}.lora_A.weight" in lora:
            update = lora[f"{module}.lora_B.weight"] @ lora[f"{module}.lora_A.weight"]
            assert update.abs().max() > 0
            expected = (tensor.float() + update).to(tensor.dtype)
        assert written[name].dtype == tensor.dtype
        torch.testing.assert_close(
            written[name], expected, rtol=1e-6 if tensor.dtype == torch.float32 else 8e-3, atol=1e-8
        )
    assert "| written in | fp32, some bf16 |" in (export / "README.md").read_text(encoding="utf-8")


def test_export_without_a_checkpoint_says_what_to_run(config_file):
    from pgdpo.messages.errors import InputError

    with pytest.raises(InputError, match="out/dpo: no run: `pgdpo train`"):
        run_pgdpo("export", config_file)


def test_an_export_needs_no_gpu(config_file, monkeypatch):
    """It is written on the CPU, also of a run whose kernels and attention are a GPU's."""
    run_pgdpo("train", config_file, "model.kernels=triton", "train.steps=1")
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # as where the kernels are compiled
    run = open_run(load_config(config_file, ["model.kernels=triton", "model.attention=_flash_3"]))
    assert list(export(run, ("diffusers", "merged")).glob("*.safetensors"))


def test_a_run_that_was_told_other_numbers_is_said(config_file, monkeypatch, capfd):
    run_pgdpo("train", config_file, "train.precision=bf16")
    run_pgdpo("export", config_file, "--format", "merged")  # which is written in fp32
    assert "told other numbers" not in capfd.readouterr().out
    then = {"told_rounded": "positions"}
    monkeypatch.setattr("pgdpo.checkpoints.export.told_rounded", lambda config: then)
    run_pgdpo("export", config_file)
    assert (
        "was trained by an earlier version" in (said := capfd.readouterr().out) and "now: positions" in said
    )
