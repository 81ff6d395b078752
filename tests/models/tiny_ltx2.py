"""A whole LTX-2 pipeline with one-digit layers, saved to disk: every part of its real class, weights at random."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.models.tiny_pipelines import WORDS, tokenizer

TEXT = 16  # width of Gemma's states
LAYERS = 2


def gemma3():
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3TextConfig,
        SiglipVisionConfig,
    )

    text = Gemma3TextConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=TEXT,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=1024,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=3,
    )
    seen = SiglipVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=seen,
        mm_tokens_per_image=4,
        image_token_index=len(WORDS),
        boi_token_index=len(WORDS) + 1,
        eoi_token_index=len(WORDS) + 1,
    )
    return Gemma3ForConditionalGeneration(config)


def gemma4():
    """LTX-2.5's, without its vision and its hearing."""
    from transformers import (
        Gemma4UnifiedConfig,
        Gemma4UnifiedForConditionalGeneration,
        Gemma4UnifiedTextConfig,
    )

    text = Gemma4UnifiedTextConfig(
        vocab_size=len(WORDS),
        hidden_size=TEXT,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        global_head_dim=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    return Gemma4UnifiedForConditionalGeneration(Gemma4UnifiedConfig(text_config=text))


def save_tiny_ltx2(folder: Path, *, version: str = "2.0", pipeline: str = "LTX2Pipeline") -> Path:
    """`version`: 2.0; 2.3, with gated attention, modulated attention to text, and projections in the connectors; or
    2.5, whose feed-forward has no bias."""
    import diffusers
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        base_shift=0.95,
        max_shift=2.05,
        shift_terminal=0.1,
    )
    older = {
        "decoder_block_out_channels": (8, 16, 32),
        "upsample_type": ("spatiotemporal",) * 3,
        "upsample_residual": (True,) * 3,
        "upsample_factor": (2,) * 3,
        "decoder_spatial_padding_mode": "reflect",
    }
    newer = {
        "decoder_block_out_channels": (8, 16, 16, 32),
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4,
        "upsample_factor": (2, 2, 1, 2),
        "decoder_spatial_padding_mode": "zeros",
    }
    blocks = older if version == "2.0" else newer
    many = len(blocks["upsample_type"])
    vae = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * (many + 1),
        spatio_temporal_scaling=(True,) * 4,
        decoder_spatio_temporal_scaling=(True,) * many,
        decoder_inject_noise=(False,) * (many + 1),
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        timestep_conditioning=False,
        decoder_causal=False,
        encoder_spatial_padding_mode="zeros",
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
        **blocks,
    )
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 2.0, 8))
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1, 1, 2),
        num_res_blocks=1,
        resolution=16,
        latent_channels=2,
        mel_bins=8,
    )
    audio_vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, 4))
    audio_vae.latents_std.copy_(torch.linspace(0.5, 2.0, 4))
    parts = {"vae": vae, "audio_vae": audio_vae, "transformer": transformer(version), "scheduler": scheduler}
    gemma = gemma4() if version == "2.5" else gemma3()
    parts |= {"text_encoder": gemma.eval(), "tokenizer": tokenizer(padding_side="left")}
    parts |= {"connectors": connectors(version).eval(), "vocoder": vocoder(version).eval()}
    getattr(diffusers, pipeline)(**parts).save_pretrained(folder)
    return folder


def transformer(version: str, **options):
    """As scripts/convert_ltx2_to_diffusers.py has the flags of each version."""
    from diffusers import LTX2VideoTransformer3DModel

    newer = {
        "gated_attn": True,
        "cross_attn_mod": True,
        "audio_gated_attn": True,
        "audio_cross_attn_mod": True,
        "use_prompt_embeddings": False,
        "perturbed_attn": True,
    }
    flags = {
        "2.0": {},
        "2.3": newer,
        "2.5": newer | {"ff_bias": False, "use_keyframes_abs_pos_embedding": True},
    }
    return LTX2VideoTransformer3DModel(
        **{
            "in_channels": 8,
            "out_channels": 8,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "cross_attention_dim": 32,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 8,
            "audio_cross_attention_dim": 16,
            "num_layers": 2,
            "caption_channels": TEXT,
            "rope_type": "split",
            **flags[version],
            **options,
        }
    )


def connectors(version: str):
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    newer = {
        "video_connector_num_attention_heads": 2,
        "video_connector_attention_head_dim": 16,
        "audio_connector_num_attention_heads": 2,
        "audio_connector_attention_head_dim": 8,
        "video_gated_attn": True,
        "audio_gated_attn": True,
        "per_modality_projections": True,
        "video_hidden_dim": 32,
        "audio_hidden_dim": 16,
        "proj_bias": True,
    }
    older = {
        f"{stream}_connector_{name}": value
        for stream in ("video", "audio")
        for name, value in (("num_attention_heads", 2), ("attention_head_dim", TEXT // 2))
    }
    return LTX2TextConnectors(
        caption_channels=TEXT,
        text_proj_in_factor=LAYERS + 1,
        video_connector_num_layers=1,
        audio_connector_num_layers=1,
        rope_type="split",
        **(older if version == "2.0" else newer),
    )


def vocoder(version: str):
    """From a spectrogram of 16 kHz and a hop of 160 to 24 kHz; from 2.3 on to 16 kHz, and those to 48."""
    from diffusers.pipelines.ltx2 import LTX2Vocoder, LTX2VocoderWithBWE

    own = {"in_channels": 16, "hidden_channels": 16, "out_channels": 2, "resnet_kernel_sizes": [3]}
    own |= {"resnet_dilations": [[1]]}
    if version == "2.0":
        return LTX2Vocoder(**own, upsample_kernel_sizes=[16, 15, 8], upsample_factors=[6, 5, 8])
    return LTX2VocoderWithBWE(
        **own,
        upsample_kernel_sizes=[11, 8, 8],
        upsample_factors=[5, 4, 8],
        bwe_in_channels=16,
        bwe_hidden_channels=16,
        bwe_upsample_kernel_sizes=[12, 11, 16],
        bwe_upsample_factors=[6, 5, 8],
        bwe_resnet_kernel_sizes=[3],
        bwe_resnet_dilations=[[1]],
        num_mel_channels=8,
    )
