"""diffusers' own LoRA script for CogVideoX, on tiny models and two clips of noise, in bf16."""

from __future__ import annotations

from pathlib import Path

TRAINER = "diffusers, train_cogvideox_lora.py"
PACKAGES = ("diffusers", "accelerate", "av", "decord", "peft", "torchvision", "transformers")
FOLDER = "examples/cogvideo"
CHECKOUT = ("DIFFUSERS_CHECKOUT", "58eb52c0803ea9af3abec60841c2a093bdf1f951", (FOLDER,))
DTYPE = "bfloat16"
SCOPE = "whole script"


def command(source: Path, work: Path) -> list:
    save_models(work / "model")
    save_clips(work / "clips")
    record = Path(__file__).resolve().parents[1] / "record.py"
    flags = {"pretrained_model_name_or_path": work / "model", "instance_data_root": work / "clips"}
    flags |= {"caption_column": "prompts.txt", "video_column": "videos.txt", "output_dir": work / "out"}
    flags |= {"height": 32, "width": 32, "max_num_frames": 5, "train_batch_size": 1, "max_train_steps": 6}
    flags |= {"learning_rate": 1e-3, "lr_warmup_steps": 0, "rank": 4, "seed": 0, "mixed_precision": "bf16"}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return [record, source / FOLDER / "train_cogvideox_lora.py", *words]


def save_models(folder: Path) -> None:
    """CogVideoX's parts, a few thousand parameters each, and a tokenizer of bytes."""
    import diffusers
    import torch
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        time_embed_dim=16,
        text_embed_dim=16,
        max_text_seq_length=8,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        use_rotary_positional_embeddings=True,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    scheduler = diffusers.CogVideoXDPMScheduler(prediction_type="v_prediction")
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    diffusers.CogVideoXPipeline(ByT5Tokenizer(), text_encoder, vae, transformer, scheduler).save_pretrained(
        folder
    )


def save_clips(folder: Path) -> None:
    import av
    import numpy as np

    folder.mkdir()
    draw, names = np.random.default_rng(0), ("0.mp4", "1.mp4")
    for name in names:
        with av.open(str(folder / name), "w") as file:
            stream = file.add_stream("mpeg4", rate=8)
            stream.width = stream.height = 32
            for _ in range(5):
                picture = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            file.mux(stream.encode())
    (folder / "videos.txt").write_text("\n".join(names))
    (folder / "prompts.txt").write_text("a cat\na dog")
