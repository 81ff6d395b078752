"""DiffSynth's `train.py` on a tiny Wan: `python launch.py SCRIPT FOLDER`, with DiffSynth on the path.

It knows a checkpoint by the hash of its shapes: the tiny model's is put into its list.
"""

import json
import runpy
import sys
from pathlib import Path

import torch
from diffsynth.configs import MODEL_CONFIGS
from diffsynth.core.loader import hash_model_file
from diffsynth.models.wan_video_dit import WanModel
from safetensors.torch import save_file
from transformers import T5Tokenizer

SHAPE = dict(
    has_image_input=False, patch_size=[1, 2, 2], in_dim=16, dim=48, ffn_dim=64, freq_dim=16, text_dim=32,
    out_dim=16, num_heads=2, num_layers=2, eps=1e-6,
)  # fmt: skip

script, work = sys.argv[1], Path(sys.argv[2])
torch.manual_seed(0)
weights, cache, tokenizer = work / "dit.safetensors", work / "cache", work / "tokenizer"
tiny = WanModel(**SHAPE)
for block in tiny.blocks:
    torch.nn.init.normal_(block.modulation)  # as far from nothing as it gets: a wrong one is seen in the loss
torch.nn.init.normal_(tiny.head.head.weight, std=0.5)
save_file(tiny.state_dict(), weights)
model = {"model_name": "wan_video_dit", "model_class": "diffsynth.models.wan_video_dit.WanModel"}
MODEL_CONFIGS.append(model | {"model_hash": hash_model_file(str(weights)), "extra_kwargs": SHAPE})
T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], extra_ids=0).save_pretrained(tokenizer)
cache.mkdir()
for clip in range(6):  # as its task sft:data_process leaves them
    shared = {"input_latents": torch.randn(1, 16, 2, 4, 4), "use_gradient_checkpointing": True}
    torch.save((shared, {"context": torch.randn(1, 6, 32)}, {}), cache / f"{clip}.pth")
sys.argv = [
    script,
    "--task=sft:train",
    f"--dataset_base_path={cache}",
    f"--model_paths={json.dumps([str(weights)])}",
    f"--tokenizer_path={tokenizer}",
    f"--output_path={work / 'output'}",
    "--lora_base_model=dit",
    "--lora_rank=4",
    "--learning_rate=1e-2",
    "--use_gradient_checkpointing",
]
runpy.run_path(script, run_name="__main__")
