"""flow_grpo's online DPO of Stable Diffusion 3.5 by the compressibility of the pictures."""

from pathlib import Path

TRAINER = "flow_grpo, train_sd3_dpo.py"
PACKAGES = (
    "ml_collections",
    "absl-py",
    "wandb",
    "diffusers",
    "peft",
    "accelerate",
    "transformers",
    "sentencepiece",
)
DTYPE = "float32"
SCOPE = "whole script"
CHECKOUT = (
    "FLOW_GRPO_CHECKOUT",
    "ac4c86e8cae021841f1fde853d340e0db67690dd",
    ("scripts", "flow_grpo", "config"),
)
STEPS = 6

CONFIG = """
import importlib.util, os
spec = importlib.util.spec_from_file_location("theirs", os.path.join(os.environ["PYTHONPATH"].split(":")[0], "config/dpo.py"))
theirs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(theirs)

def get_config():
    config = theirs.pickscore_sd3()
    config.pretrained.model = {model!r}
    config.dataset = {data!r}
    config.logdir = config.save_dir = {logs!r}
    config.mixed_precision = "no"
    config.resolution = 16
    config.sample.num_steps, config.sample.eval_num_steps = 3, 2
    config.sample.train_batch_size = config.train.batch_size = 4
    config.sample.num_image_per_prompt = 2
    config.sample.test_batch_size = 1
    config.train.gradient_accumulation_steps = 1
    config.train.timestep_fraction = 0.4
    config.train.beta = 100
    config.reward_fn = {{"jpeg_compressibility": 1.0}}
    config.eval_freq = 10**6
    return config
"""


def command(source: Path, work: Path) -> list:
    model, data = work / "model", work / "prompts"
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.txt").write_text("a red cat\na blue dog\na bus\n")
    pipeline(work).save_pretrained(model)
    config = work / "config.py"
    config.write_text(CONFIG.format(model=str(model), data=str(data), logs=str(work / "logs")))
    return [
        Path(__file__).parent.parent / "record.py",
        STEPS,
        source / "scripts/train_sd3_dpo.py",
        f"--config={config}",
    ]


def pipeline(work: Path):
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    torch.manual_seed(0)
    clip = CLIPTextConfig(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        projection_dim=32,
        bos_token_id=52,
        eos_token_id=53,
    )
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            block_out_channels=(4,),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=1,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.0609,
            scaling_factor=1.5035,
        ),
        text_encoder=CLIPTextModelWithProjection(clip),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(
            T5Config(vocab_size=1000, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
        ),
        tokenizer_3=t5_tokenizer(),
    )


def clip_tokenizer():
    from transformers import CLIPTokenizer

    letters = [chr(x) for x in range(97, 123)]
    tokens = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def t5_tokenizer():
    from transformers import T5Tokenizer

    tokens = ["<pad>", "</s>", "<unk>", "\u2581", *(chr(x) for x in range(97, 123))]
    return T5Tokenizer(vocab=[(token, 0.0) for token in tokens], extra_ids=0)
