"""Wan 2.1 text-to-video, as diffusers has it (WanTransformer3DModel, AutoencoderKLWan, UMT5).

Flow matching: noisy = (1 - sigma) x + sigma eps, the model predicts eps - x and is conditioned on 1000 sigma.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from diffusers.video_processor import VideoProcessor

from pgdpo.errors import InputError
from pgdpo.models.toy import TOY_BASE, ToyEncoders

PREDICTION = "flow"
NUM_TRAIN_TIMESTEPS = 1000
TEXT_LENGTH = 512  # WanPipeline.__call__'s max_sequence_length


def resolve(path: str) -> str:
    """Local folder or hub id of a configured model path; checks a local folder's parts.

    Raises InputError if a local folder is not a Wan pipeline.
    """
    folder = TOY_BASE if path == "toy" else Path(path)
    looks_local = path == "toy" or folder.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1
    if not looks_local:
        return path
    if not (folder / "transformer" / "config.json").is_file():
        raise InputError(
            f"model.path is {path!r}: no transformer/config.json in {folder}; give a diffusers folder of a Wan "
            "pipeline (with transformer/, vae/, text_encoder/, tokenizer/, scheduler/) or a hub id"
        )
    found = WanTransformer3DModel.load_config(folder / "transformer").get("_class_name")
    if found != "WanTransformer3DModel":
        raise InputError(
            f"model.path is {path!r}: its transformer is a {found}, model.family `wan` needs a Wan one"
        )
    return str(folder)


def load_transformer(
    path: str, *, dtype: torch.dtype, random_init_seed: int | None = None
) -> WanTransformer3DModel:
    """The transformer of a Wan pipeline; modules that diffusers keeps in fp32 stay so.

    `random_init_seed`: take the architecture only, with weights drawn from this seed.
    """
    source = resolve(path)
    if random_init_seed is None:
        return WanTransformer3DModel.from_pretrained(source, subfolder="transformer", torch_dtype=dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_init_seed)
        return from_architecture(architecture(path)).to(dtype)


def architecture(path: str) -> dict:
    """The transformer's configuration, as diffusers stores it."""
    return dict(WanTransformer3DModel.load_config(resolve(path), subfolder="transformer"))


def from_architecture(config: dict) -> WanTransformer3DModel:
    """A transformer with fresh weights on the current default device."""
    return WanTransformer3DModel.from_config(config)


def predict(
    transformer: Callable, noisy: torch.Tensor, sigma: torch.Tensor, prompt: torch.Tensor
) -> torch.Tensor:
    """Velocity `[N, C, F, H, W]` at noise levels `sigma` `[N]` for prompt embeddings `[N, L, D]`."""
    return transformer(
        hidden_states=noisy,
        timestep=sigma * NUM_TRAIN_TIMESTEPS,
        encoder_hidden_states=prompt,
        return_dict=False,
    )[0]


@torch.no_grad()
def sample(
    transformer: WanTransformer3DModel,
    path: str,
    noise: torch.Tensor,
    prompt: torch.Tensor,
    empty_prompt: torch.Tensor,
    *,
    steps: int,
    guidance_scale: float,
) -> torch.Tensor:
    """Latents `[N, C, F, H, W]` from initial `noise` of that shape, through diffusers' own WanPipeline.

    `prompt`, `empty_prompt`: embeddings `[N, L, D]`.
    """
    scheduler = UniPCMultistepScheduler.from_pretrained(resolve(path), subfolder="scheduler")
    pipeline = WanPipeline(None, None, None, scheduler, transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt_embeds=prompt,
        negative_prompt_embeds=empty_prompt,
        height=16,  # `latents` alone fix the size; the pipeline only checks that these divide by 16
        width=16,
        num_frames=1,
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        output_type="latent",
    ).frames


def save_adapter(folder: Path, state: dict[str, torch.Tensor], metadata: dict) -> None:
    """Write a LoRA under diffusers' names, so that `WanPipeline.load_lora_weights(folder)` takes it."""
    WanPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=state,
        transformer_lora_adapter_metadata=metadata,
        safe_serialization=True,
    )


def load_encoders(path: str, kind: str, device: torch.device) -> WanEncoders | ToyEncoders:
    """The pipeline's own VAE and text encoder, or the toy's stand-ins."""
    return ToyEncoders() if kind == "toy" else WanEncoders(resolve(path), device)


class WanEncoders:
    """AutoencoderKLWan and UMT5 of a Wan pipeline; each is loaded when first used and only one is held."""

    text_length = TEXT_LENGTH

    def __init__(self, source: str, device: torch.device) -> None:
        self._source = source
        self._device = device
        self._loaded: tuple[str, object] | None = None
        parts = ("vae", "tokenizer", "text_encoder")
        self.fingerprint = f"wan:{fingerprint(source, parts)}:text{TEXT_LENGTH}"

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        config = AutoencoderKLWan.load_config(self._source, subfolder="vae")
        temporal, spatial = config.get("scale_factor_temporal", 4), config.get("scale_factor_spatial", 8)
        step = 2 * spatial  # the transformer joins 2x2 latent pixels
        for key, value in (("height", height), ("width", width)):
            if value % step:
                low = value // step * step
                raise InputError(
                    f"data.{key} is {value}; this VAE takes multiples of {step}: {low} or {low + step}"
                )
        if num_frames % temporal != 1:
            low = (num_frames - 1) // temporal * temporal + 1
            raise InputError(
                f"data.num_frames is {num_frames}; this VAE takes {temporal}k + 1 frames: {low} or {low + temporal}"
            )

    def encode_prompts(self, prompts: list[str]) -> list[torch.Tensor]:
        pipeline = self._load("text", self._load_text)
        embeddings, _ = pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH, device=self._device
        )
        # The pipeline pads with zero rows behind the last token; they are not stored.
        return [row[: int(row.abs().sum(-1).nonzero().max()) + 1].float().cpu() for row in embeddings]

    @torch.no_grad()
    def encode_video(self, frames: np.ndarray) -> torch.Tensor:
        vae = self._load("vae", self._load_vae)
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(self._device, vae.dtype) / 127.5 - 1
        mean, std = self._statistics(vae)
        return ((vae.encode(pixels).latent_dist.mode() - mean) / std)[0].float().cpu()

    @torch.no_grad()
    def decode_video(self, latents: torch.Tensor) -> np.ndarray:
        vae = self._load("vae", self._load_vae)
        mean, std = self._statistics(vae)
        video = vae.decode(latents[None].to(self._device, vae.dtype) * std + mean, return_dict=False)[0]
        frames = VideoProcessor().postprocess_video(video, output_type="np")[0]
        return (frames * 255).round().astype(np.uint8)

    def _statistics(self, vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, vae.config.z_dim, 1, 1, 1)
        make = lambda values: torch.tensor(values, device=self._device, dtype=vae.dtype).view(shape)  # noqa: E731
        return make(vae.config.latents_mean), make(vae.config.latents_std)

    def _load(self, name: str, load: Callable):
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            gc.collect()
            self._loaded = (name, load())
        return self._loaded[1]

    def _load_text(self) -> WanPipeline:
        parts = {"transformer": None, "vae": None, "scheduler": None}
        dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
        return WanPipeline.from_pretrained(self._source, **parts, torch_dtype=dtype).to(self._device)

    def _load_vae(self) -> AutoencoderKLWan:
        # fp32, as the pipelines' own documentation asks for.
        vae = AutoencoderKLWan.from_pretrained(self._source, subfolder="vae", torch_dtype=torch.float32)
        vae.enable_tiling()
        return vae.to(self._device).eval()


def fingerprint(path: str, parts: tuple[str, ...]) -> str:
    """Digest of the named subfolders of a pipeline: of each file its name, size, first and last MiB.

    A hub id stands for itself.
    """
    folder = Path(resolve(path))
    if not folder.is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(file for part in parts for file in (folder / part).rglob("*") if file.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder)}:{size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(1 << 20))
            stream.seek(max(0, size - (1 << 20)))
            digest.update(stream.read())
    return digest.hexdigest()[:16]
