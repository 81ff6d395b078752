"""flow_grpo's DPO of Stable Diffusion 3.5 on its own samples, by how well they compress; all on tiny models."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

TRAINER = "flow_grpo, train_sd3_dpo.py"
PACKAGES = ("diffusers", "accelerate", "absl-py", "ml_collections", "peft", "transformers", "wandb")
CHECKOUT = (
    "FLOW_GRPO_CHECKOUT",
    "ac4c86e8cae021841f1fde853d340e0db67690dd",
    ("scripts", "flow_grpo", "config"),
)
DTYPE = "float32"
BETA = 100
GAIN = BETA / 2
SCOPE = "whole script"
STEPS = 6

CONFIG = """
import importlib.util

spec = importlib.util.spec_from_file_location("theirs", {theirs!r})
theirs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(theirs)

def get_config():
    config = theirs.pickscore_sd3()
    config.pretrained.model, config.dataset = {model!r}, {prompts!r}
    config.logdir = config.save_dir = {logs!r}
    config.mixed_precision, config.resolution = "no", 8
    config.sample.num_steps, config.train.timestep_fraction = 5, 0.2
    config.sample.eval_num_steps = config.sample.test_batch_size = 1
    config.sample.train_batch_size = config.train.batch_size = 4
    config.sample.num_image_per_prompt, config.sample.num_batches_per_epoch = 2, {batches}
    config.train.gradient_accumulation_steps, config.train.beta = 1, {beta}
    config.reward_fn = {{"jpeg_compressibility": 1.0}}
    return config
"""


def command(source: Path, work: Path) -> list:
    return [Path(__file__).resolve().parents[1] / "record.py", STEPS, *script(source, work)]


def script(source: Path, work: Path, batches: int = 1) -> list:
    """The script and its configuration: theirs but for sizes; `batches` are sampled before each training."""
    model, prompts, config = work / "model", work / "prompts", work / "config.py"
    prompts.mkdir()
    (prompts / "train.txt").write_text("".join(f"a {chr(97 + i)}\n" for i in range(26)))
    (prompts / "test.txt").write_text("a cat\n")
    save_pipeline(model)
    names = {"theirs": source / "config/dpo.py", "model": model, "prompts": prompts, "logs": work / "logs"}
    names = {name: str(path) for name, path in names.items()}
    config.write_text(CONFIG.format(**names, batches=batches, beta=BETA))
    return [source / "scripts/train_sd3_dpo.py", f"--config={config}"]


def save_pipeline(folder: Path) -> None:
    """Stable Diffusion 3.5's parts, a few thousand parameters each, and tokenizers of single letters."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    clip_tokenizer = transformers.CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=77
    )
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *letters]
    t5_tokenizer = transformers.T5Tokenizer(vocab=[(piece, 0.0) for piece in pieces], extra_ids=0)
    size = dict(hidden_size=32, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2)
    clip = transformers.CLIPTextConfig(
        **size, vocab_size=len(words), projection_dim=32, bos_token_id=0, eos_token_id=1, pad_token_id=1
    )
    t5 = transformers.T5Config(
        vocab_size=len(pieces), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2
    )
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,),
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5305,
    )
    diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=transformers.CLIPTextModelWithProjection(clip),
        tokenizer=clip_tokenizer,
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip),
        tokenizer_2=clip_tokenizer,
        text_encoder_3=transformers.T5EncoderModel(t5),
        tokenizer_3=t5_tokenizer,
    ).save_pretrained(folder)


def findings() -> dict[str, float]:
    """What the script trains on, by `watch.py`."""
    trained = watched(batches=1)
    split = watched(batches=2)
    return {
        "latents trained on": trained["rows"],
        "of which a picture's": trained["clean"],
        "pairs of two prompts, one batch a round": trained["mixed"] / trained["pairs"],
        "pairs of two prompts, two batches a round": split["mixed"] / split["pairs"],
    }


def watched(batches: int) -> dict[str, int]:
    """`watch.py`'s counts of the untouched script."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import run

    with tempfile.TemporaryDirectory() as root:
        source, work = Path(root, "source"), Path(root, "work")
        source.mkdir(), work.mkdir()
        run.sources("flow_grpo", run.load("flow_grpo"), source)
        arguments = [Path(__file__).with_name("watch.py"), *script(source, work, batches)]
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=source,
            env=run.environment(source, None),
            capture_output=True,
            text=True,
            check=True,
        )
    return {name: int(count) for name, count in re.findall(r"(rows|clean|pairs|mixed) (\d+)", done.stdout)}
