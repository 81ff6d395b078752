"""Whole diffusers pipelines with one-digit layers, saved to disk: every part of its real class, weights at random."""

from __future__ import annotations

from pathlib import Path

import torch

SPECIAL = ("<pad>", "</s>", "<unk>", "<s>")
COLOURS, SHAPES = ("red", "green", "blue"), ("circle", "square", "triangle", "ring", "star")
WORDS = (*SPECIAL, *COLOURS, *SHAPES, "a", "moving", "left", "right", "up", "down", "still")


def tokenizer(**options):
    """A real fast tokenizer that knows the toy world's words; everything else is <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **options
    )


def t5(width: int = 16):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )


def save_tiny_hunyuan_video(folder: Path, *, condition: str | None = None) -> Path:
    """`condition`: how the transformer is given an image, `latent_concat` or `token_replace`; None: by nothing."""
    import diffusers
    from transformers import LlamaModel

    torch.manual_seed(0)
    options = {"in_channels": 9, "guidance_embeds": False} if condition == "latent_concat" else {}
    transformer, vae = hunyuan_video(**options, image_condition_type=condition)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    parts = (transformer, vae, scheduler)
    clip = lambda: (clip_text().eval(), tokenizer(model_max_length=77))  # noqa: E731
    if condition is None:
        reads = LlamaModel(llama(len(WORDS))).eval()
        pipeline = diffusers.HunyuanVideoPipeline(reads, tokenizer(), *parts, *clip())
    else:
        reads = llava().eval(), llava_tokenizer()
        pipeline = diffusers.HunyuanVideoImageToVideoPipeline(*reads, *parts, *clip(), clip_image(48))
    pipeline.save_pretrained(folder)
    return folder


def clip_image(side: int):
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def hunyuan_video(**options) -> tuple:
    from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel

    transformer = HunyuanVideoTransformer3DModel(
        **{"in_channels": 4, **options},
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return transformer, vae


def llama(words: int):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
    )


# Of Llama 3, and Llava's image; the words of the pipeline's template are unknown.
MARKS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<image>")


def llava():
    """With 576 tokens of an image, which the pipeline counts on."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    seen = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=48,
        patch_size=2,
    )
    words = (*WORDS, *MARKS)
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=seen,
            text_config=llama(len(words)),
            image_token_index=words.index("<image>"),
            pad_token_id=0,
        )
    )


def llava_tokenizer():
    """Makes of the pipeline's template before the prompt as many tokens as Llama's does, 103, the image's as sixth."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = (*WORDS, *MARKS)
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.add_special_tokens(list(MARKS))
    parts = Regex(r"\n+|D|\w+|[^\w\s]")
    core.pre_tokenizer = pre_tokenizers.Split(parts, behavior="removed", invert=True)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", unk_token="<unk>"
    )


def clip_text():
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(WORDS),
            hidden_size=8,
            intermediate_size=8,
            projection_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            bos_token_id=3,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def save_tiny_cogvideox(folder: Path, *, rotary: bool, newer: bool = False, image: bool = False) -> Path:
    """`rotary`: positions, scheduler and all else as the 5b has them; else as the 2b. `newer`: of CogVideoX 1.5."""
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXDPMScheduler,
        CogVideoXImageToVideoPipeline,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )

    torch.manual_seed(0)
    # Learned positions are for clips of one size.
    learned = {"sample_height": 4, "sample_width": 6, "use_learned_positional_embeddings": True}
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8 if image else 4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=2,
        sample_frames=9,
        use_rotary_positional_embeddings=rotary,
        **(learned if image and not newer else {"sample_height": 8, "sample_width": 12}),
        **({"patch_size_t": 2, "patch_bias": False} if newer else {}),
        ofs_embed_dim=8 if image and newer else None,
    )
    if image and not newer:
        transformer.patch_embed.pos_embedding.normal_()
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.7 if rotary else 1.15258426,
        invert_scale_latents=newer,
    )
    scheduler = (CogVideoXDPMScheduler if rotary else CogVideoXDDIMScheduler)(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        snr_shift_scale=1.0 if rotary else 3.0,
    )
    pipeline = CogVideoXImageToVideoPipeline if image else CogVideoXPipeline
    pipeline(tokenizer(), t5().eval(), vae, transformer, scheduler).save_pretrained(folder)
    return folder


def save_tiny_ltx(folder: Path, *, pipeline: str = "LTXPipeline", version: str = "0.9.0") -> Path:
    """`version`: 0.9.0; 0.9.1, whose VAE's decoder is told a timestep; or 0.9.5, with a VAE of other blocks and a
    scheduler that does not shift."""
    import diffusers
    from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel

    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=16,
    )
    blocks = {
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    }
    shifting = {
        "use_dynamic_shifting": True,
        "base_image_seq_len": 1024,
        "max_image_seq_len": 4096,
        "base_shift": 0.95,
        "max_shift": 2.05,
        "shift_terminal": 0.1,
    }
    if version == "0.9.5":  # as scripts/convert_ltx_to_diffusers.py has it
        shifting = {"use_dynamic_shifting": False}
        blocks = {
            "block_out_channels": (16, 16, 16, 16, 16),
            "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
            "decoder_block_out_channels": (8, 16, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1),
            "spatio_temporal_scaling": (True,) * 4,
            "decoder_spatio_temporal_scaling": (True,) * 3,
            "decoder_inject_noise": (False,) * 4,
            "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            "upsample_residual": (True,) * 3,
            "upsample_factor": (2,) * 3,
            "spatial_compression_ratio": 32,
            "temporal_compression_ratio": 8,
        }
    vae = AutoencoderKLLTXVideo(latent_channels=8, **blocks, timestep_conditioning=version != "0.9.0")
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 2.0, 8))
    scheduler = FlowMatchEulerDiscreteScheduler(**shifting)
    parts = scheduler, vae, t5().eval(), tokenizer(), transformer
    getattr(diffusers, pipeline)(*parts).save_pretrained(folder)
    return folder
