"""diffusers' own Diffusion-DPO script for Stable Diffusion 1.5: its LoRA trainer, on a tiny pipeline and random pairs.

The UNet has none of the blocks that the ops stand in for: the patch is the loss alone. The script's beta has no half
in it: its 2500 is 5000 here.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

TRAINER = "diffusers, train_diffusion_dpo.py"
PACKAGES = ("diffusers", "accelerate", "datasets", "peft", "torchvision", "transformers", "wandb")
FOLDER = "examples/research_projects/diffusion_dpo"
CHECKOUT = ("DIFFUSERS_CHECKOUT", "58eb52c0803ea9af3abec60841c2a093bdf1f951", (FOLDER,))
DTYPE = "float32"
GAIN = 2500
SCOPE = "whole script"


def command(source: Path, work: Path) -> list:
    save_pipeline(work / "model")
    save_pairs(work / "pairs")
    record = Path(__file__).resolve().parents[1] / "record.py"
    flags = {"pretrained_model_name_or_path": work / "model", "dataset_name": work / "pairs"}
    flags |= {"output_dir": work / "out", "cache_dir": work / "cache", "dataset_split_name": "train"}
    flags |= {"resolution": 16, "train_batch_size": 2, "max_train_steps": 5, "seed": 0}
    flags |= {"learning_rate": 1e-5, "lr_warmup_steps": 0, "beta_dpo": GAIN, "report_to": "tensorboard"}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return [record, source / FOLDER / "train_diffusion_dpo.py", *words]


def save_pipeline(folder: Path) -> None:
    """Stable Diffusion's parts, a few thousand parameters each, and a tokenizer of single letters."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(folder / "vae")
    DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(
        folder / "scheduler"
    )
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    (folder / "tokenizer").mkdir(parents=True)
    vocabulary, merges = folder / "tokenizer/vocab.json", folder / "tokenizer/merges.txt"
    vocabulary.write_text(json.dumps({word: index for index, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=8).save_pretrained(
        folder / "tokenizer"
    )
    size = dict(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    ends = dict(bos_token_id=0, eos_token_id=1, pad_token_id=1, max_position_embeddings=8)
    CLIPTextModel(CLIPTextConfig(vocab_size=len(words), **size, **ends)).save_pretrained(
        folder / "text_encoder"
    )


def save_pairs(folder: Path) -> None:
    """Random pictures in the form of Pick-a-Pic."""
    import numpy as np
    import pandas
    from PIL import Image

    draw = np.random.default_rng(0)

    def picture() -> bytes:
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
        return file.getvalue()

    rows = [
        {"jpg_0": picture(), "jpg_1": picture(), "label_0": index % 2, "caption": "a cat"}
        for index in range(10)
    ]
    folder.mkdir()
    pandas.DataFrame(rows).to_parquet(folder / "train.parquet")


def findings() -> dict[str, float]:
    """The script's margin, and pgdpo_kernels', on a policy that is off its reference by LoRA's first steps.

    Both in fp32 on one SD 1.5 latent a sample, beside float64; logits are beta times the margin.
    """
    import torch

    from pgdpo_kernels import diffusion_dpo_loss

    draw = torch.Generator().manual_seed(0)
    target, reference, away = torch.randn(3, 64, 4, 64, 64, generator=draw)
    policy = reference + 1e-4 * away

    def mean(prediction: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return (prediction.to(dtype) - target.to(dtype)).square().mean((1, 2, 3))

    def logits(dtype: torch.dtype) -> torch.Tensor:
        policy_w, policy_l = mean(policy, dtype).chunk(2)
        ref_w, ref_l = mean(reference, dtype).chunk(2)
        return GAIN * ((ref_w - ref_l) - (policy_w - policy_l))

    ours = diffusion_dpo_loss(policy, target, reference, beta=2 * GAIN, objective="dpo").logits
    exact = logits(torch.float64)
    return {
        "logit, root mean square": exact.square().mean().sqrt().item(),
        "logit, the script's largest error": (logits(torch.float32) - exact).abs().max().item(),
        "logit, our largest error": (ours - exact).abs().max().item(),
    }
