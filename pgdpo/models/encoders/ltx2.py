"""VAEs, text encoder and vocoder of an LTX-2 pipeline, as `prepare` and `evaluate` use them."""

from __future__ import annotations

import functools
import json
import math
from typing import TYPE_CHECKING

from pgdpo.diffusion.streams import AUDIO
from pgdpo.messages.errors import InputError
from pgdpo.models.encoders.pipeline import PipelineEncoders, VaeFamily
from pgdpo.models.encoders.text import TextReader
from pgdpo.models.later import diffusers, no_grad, torch
from pgdpo.models.protocols import Conditioning

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2Pipeline

    from pgdpo.video import Sound, SoundFormat

TEXT_LENGTH = 1024  # the pipelines' max_sequence_length
# DEFAULT_NEGATIVE_PROMPT in diffusers' pipelines/ltx2/utils.py, which the model cards' examples use.
NEGATIVE = (
    "blurry, out of focus, overexposed, underexposed, low contrast, washed out colors, excessive noise, "
    "grainy texture, poor lighting, flickering, motion blur, distorted proportions, unnatural skin tones, "
    "deformed facial features, asymmetrical face, missing facial features, extra limbs, disfigured hands, "
    "wrong hand count, artifacts around text, inconsistent perspective, camera shake, incorrect depth of "
    "field, background too sharp, background clutter, distracting reflections, harsh shadows, inconsistent "
    "lighting direction, color banding, cartoonish rendering, 3D CGI look, unrealistic materials, uncanny "
    "valley effect, incorrect ethnicity, wrong gender, exaggerated expressions, wrong gaze direction, "
    "mismatched lip sync, silent or muted audio, distorted voice, robotic voice, echo, background noise, "
    "off-sync audio, incorrect dialogue, added dialogue, repetitive speech, jittery movement, awkward "
    "pauses, incorrect timing, unnatural transitions, inconsistent framing, tilted camera, flat lighting, "
    "inconsistent tone, cinematic oversaturation, stylized filters, or AI artifacts."
)
# The mel spectrogram that the audio VAE was trained on, as Lightricks' own code makes it (ltx_core's AudioProcessor):
# diffusers has only the way back. Its window is as long as the transform; rate, hop and bins are the VAE's.
N_FFT = 1024
QUIETEST = 1e-5


class LTX2Encoders(PipelineEncoders):
    readers = (TextReader("Gemma", TEXT_LENGTH, clean=str.strip),)
    text_parts = ("tokenizer", "text_encoder", "connectors")
    other_parts = (*PipelineEncoders.other_parts, "audio_vae", "vocoder", "processor", "prompt_enhancer")
    other_parts += ("duration_head",)

    def __init__(self, family: VaeFamily, device: torch.device) -> None:
        super().__init__(family, device)
        self.hears = AUDIO in family.streams
        if self.hears:
            rate = f"{family.frame_rate:g}"
            digest = family.fingerprint("audio_vae")
            self.fingerprint += f":audio:{digest}:{rate}"
            self.parts["sound"] = {"audio_vae": digest, "model.frame_rate": rate}
            self.parts["text"]["model.audio"] = "true"
        if family.pictures:
            self.fingerprint += ":image"
            self.parts["clips"]["image"] = f"first frame, at H.264's CRF {self.crf}"

    @property
    def sound(self) -> SoundFormat | None:
        """What the audio VAE's spectrogram is made from; None where the sound is left out."""
        from pgdpo.video.sound import SoundFormat

        vae = self.family.audio_vae
        return SoundFormat(vae.sample_rate, vae.in_channels) if self.hears else None

    def embed(self, pipeline: LTX2Pipeline, prompts: list[str]) -> list[Conditioning]:
        """What the connectors make of Gemma's states of all layers: `prompt`, and `audio_prompt` of the same length for
        the sound. One prompt at a time: the states take 0.4 GB each."""
        found = []
        for prompt in prompts:
            embeds, mask, *_ = pipeline.encode_prompt(
                [prompt],
                do_classifier_free_guidance=False,
                max_sequence_length=self.text_length,
                device=self.device,
            )
            video, audio, _ = pipeline.connectors(embeds, mask, padding_side=pipeline.tokenizer.padding_side)
            found.append({"prompt": video[0], **({"audio_prompt": audio[0]} if self.hears else {})})
        return found

    @functools.cached_property
    def crf(self) -> int:
        """What the pipeline compresses a picture by before it is encoded, as the clips of its model's training were."""
        utils = diffusers.pipelines.ltx2.utils
        newer = "Gemma4" in self.family.read_index()["text_encoder"][1]
        return utils.LTX2_5_IMAGE_CRF if newer else utils.DEFAULT_IMAGE_CRF

    @no_grad
    def encode_images(self, pictures: dict[int, np.ndarray], num_frames: int, prompt: str) -> Conditioning:
        """`image_latents` `[C, 1, H, W]` of the picture alone, a clip of one frame, compressed as the pipeline does."""
        from PIL import Image

        picture, size = pictures[0], pictures[0].shape[:2]
        vae = self.open_vae((num_frames, *size), "encoded")  # as the clip that it stands beside
        picture = diffusers.pipelines.ltx2.utils.apply_image_conditioning_crf(picture, self.crf)
        processor = diffusers.video_processor.VideoProcessor(
            vae_scale_factor=self.family.vae_shape[2], resample="bilinear"
        )
        pixels = processor.preprocess(Image.fromarray(picture), *size).unsqueeze(2)
        latents = vae.encode(pixels.to(self.device, vae.dtype)).latent_dist.mode()
        return {"image_latents": self.normalize(vae, latents.float())[0].cpu()}

    def normalize(self, vae: AutoencoderKLLTX2Video, latents: torch.Tensor) -> torch.Tensor:
        return self.family.pipeline_class._normalize_latents(
            latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )

    def decode(self, vae: AutoencoderKLLTX2Video, latents: torch.Tensor) -> torch.Tensor:
        latents = self.family.pipeline_class._denormalize_latents(
            latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )
        # The pipelines' decode_timestep, at which no noise is added.
        timestep = latents.new_zeros(1) if vae.config.timestep_conditioning else None
        return vae.decode(latents, timestep, return_dict=False)[0]

    @no_grad
    def encode_audio(self, sound: Sound, num_frames: int) -> torch.Tensor:
        """Latents `[C, L, M]`, as many as the pipeline makes for the clip.

        Latent k sees the spectrogram's frames up to 4k, which the VAE's convolutions, causal in time, let it see: what
        is behind the last latent is cut off after encoding, and sound that ends before it goes on in silence.
        """
        vae, config = self._open_audio("audio_vae", diffusers.AutoencoderKLLTX2Audio), self.family.audio_vae
        length = self.family.sound_to_latents(num_frames)[1]
        samples = torch.from_numpy(sound.samples)
        needed = 4 * (length - 1) * config.mel_hop_length + N_FFT // 2
        samples = torch.nn.functional.pad(samples, (0, max(needed - samples.shape[1], 0)))
        mel = log_mel(
            samples.to(self.device), config.sample_rate, hop=config.mel_hop_length, bins=config.mel_bins
        )
        latents = vae.encode(mel[None].to(vae.dtype)).latent_dist.mode()[:, :, :length]
        pipeline = self.family.pipeline_class
        packed = pipeline._normalize_audio_latents(
            pipeline._pack_audio_latents(latents), vae.latents_mean, vae.latents_std
        )
        return pipeline._unpack_audio_latents(packed, *latents.shape[2:])[0].float().cpu()

    @no_grad
    def decode_audio(self, latents: torch.Tensor) -> Sound:
        """Through the audio VAE and the vocoder, as the pipeline does, at the vocoder's rate."""
        from pgdpo.video.sound import Sound

        vae = self._open_audio("audio_vae", diffusers.AutoencoderKLLTX2Audio)
        pipeline = self.family.pipeline_class
        packed = pipeline._denormalize_audio_latents(
            pipeline._pack_audio_latents(latents[None].to(self.device, vae.dtype)),
            vae.latents_mean,
            vae.latents_std,
        )
        mel = vae.decode(pipeline._unpack_audio_latents(packed, *latents.shape[1:]), return_dict=False)[0]
        kind = getattr(diffusers.pipelines.ltx2, self.family.read_index()["vocoder"][1])
        vocoder = self._open_audio("vocoder", kind)
        samples = vocoder(mel)[0].float().cpu().numpy()
        return Sound(samples, vocoder.config.output_sampling_rate)

    def _open_audio(self, part: str, kind: type) -> AutoencoderKLLTX2Audio:
        """A part of the sound's way, which stays beside the VAE: it is small, and clips come picture and sound."""
        if part not in self._heard:
            self.family.fetch(part)
            loaded = kind.from_pretrained(self.family.source, subfolder=part, torch_dtype=torch.float32)
            self._heard[part] = loaded.to(self.device).eval()
        return self._heard[part]

    @functools.cached_property
    def _heard(self) -> dict[str, torch.nn.Module]:
        return {}

    def release(self) -> None:
        self._heard.clear()
        super().release()


def check_connectors(folder: Path, path: str) -> None:
    """Raises InputError unless the pipeline's connectors fill up a prompt, so that no text is masked."""
    config = json.loads((folder / "connectors" / "config.json").read_text(encoding="utf-8"))
    for name in ("video_connector_num_learnable_registers", "audio_connector_num_learnable_registers"):
        if config.get(name, 128) is None:
            raise InputError(
                f"model.path is {path!r}: its connectors/config.json has {name}: null, and what trains are models "
                "whose prompts are filled up with learned registers, as all that Lightricks has published: take one of "
                "those"
            )


def log_mel(samples: torch.Tensor, rate: int, *, hop: int, bins: int) -> torch.Tensor:
    """Log-mel spectrogram `[channels, frames, bins]` of a waveform `[channels, n]`, with `1 + n // hop` frames.

    Magnitudes of a Hann window of `N_FFT` samples around every `hop`-th one, mirrored at both ends, in bands of
    Slaney's mel scale from 0 to half the rate whose weights are of one area, at least `QUIETEST`, in natural logarithm.
    """
    window = torch.hann_window(N_FFT, device=samples.device)
    spectrum = torch.stft(
        samples, N_FFT, hop, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    bands = mel_bands(rate, bins).to(samples.device)
    return (spectrum.abs().transpose(1, 2) @ bands).clamp(min=QUIETEST).log()


@functools.cache
def mel_bands(rate: int, bins: int) -> torch.Tensor:
    """Weights `[N_FFT // 2 + 1, bins]` of frequencies in bands: triangles of area 1, evenly set on Slaney's mel scale,
    which is linear up to 1 kHz, of 15 mel, and logarithmic above it, 27 mel for a factor of 6.4."""
    top = rate / 2
    step = math.log(6.4) / 27
    highest = 15 + math.log(top / 1000) / step if top > 1000 else top * 3 / 200
    mel = torch.linspace(0, highest, bins + 2, dtype=torch.float64)
    edges = torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * step))
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    frequency = torch.linspace(0, top, N_FFT // 2 + 1, dtype=torch.float64)[:, None]
    rising, falling = (frequency - low) / (middle - low), (high - frequency) / (high - middle)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).float()
