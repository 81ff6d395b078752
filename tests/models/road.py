"""A tiny pipeline on the way from clips to an adapter, and what the real pipeline makes of given latents."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

from pgdpo.data.prepared import padded_text
from pgdpo.data.visits.loading import stack_conditioning
from pgdpo.diffusion.streams import by_stream
from pgdpo.toy.clips import render_dataset
from tests.models.families import Kind
from tests.worlds import losses, run_pgdpo, write_config

PROMPT = "a red circle moving left"
CPU = torch.device("cpu")


@dataclass
class Road:
    """One pipeline on disk, on the way from clips to an adapter."""

    kind: Kind
    folder: Path
    world: Path
    root: Path

    def config(self, **model) -> Path:
        frames, height, width = self.kind.size
        return write_config(
            self.root / "config.yaml",
            self.root / "out",
            self.folder,
            data={
                "train": str(self._first_rows("train", 4)),
                "held_out": str(self._first_rows("held_out", 2)),
                "num_frames": frames,
                "fps": None if self.kind.hears else "own",  # with sound the rate that the model is told
                "height": height,
                "width": width,
            },
            model={"family": self.kind.family, "encoders": "pipeline", **self.kind.keys, **model},
            train={"steps": 2},
            evaluate={"reward": None, "draws_per_pair": 1},
        )

    def _first_rows(self, split: str, count: int) -> Path:
        """A manifest beside the toy world's, with its first rows alone; for a model that hears of clips that sound."""
        toy = self.world / "out" / "toy"
        if self.kind.hears:
            toy = self.root / "sounding"
            render_dataset(toy, train_pairs=4, held_out_pairs=2, sound=True)
        few = toy / f"{split}-{count}.jsonl"
        rows = (toy / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        few.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return few

    def walk(self, *overrides: str) -> Path:
        """prepare, train, export, evaluate. Returns the run's folder.

        A fresh run must show loss ln 2 to the last bit, in bf16 with recomputed activations too, and another loss after
        its first step.
        """
        config = self.config()
        formats = ["diffusers", *(["comfyui"] if self.kind.original else [])]
        for command in ("prepare", "train", "evaluate"):
            run_pgdpo(command, config, *overrides)
        run_pgdpo("export", config, *overrides, *(f"--format={name}" for name in formats))
        half = ("name=half", "train.precision=bf16", "model.gradient_checkpointing=selective")
        run_pgdpo("train", config, *overrides, *half)
        for name in ("dpo", "half"):
            first, second = losses(self.root / "out", name)
            assert first == float(torch.tensor(math.log(2), dtype=torch.float32)) != second
        return self.root / "out" / "dpo"


def open_pipeline(kind: Kind, folder: Path, dtype: torch.dtype = torch.float32):
    """The real pipeline, as its model card loads it for `dtype`."""
    dtypes = {"default": dtype, **dict.fromkeys(kind.whole, torch.float32)}
    pipeline = kind.open(folder).pipeline_class.from_pretrained(folder, torch_dtype=dtypes)
    pipeline.set_progress_bar_config(disable=True)
    settle_image(pipeline.vae)
    return pipeline


def settle_image(vae) -> None:
    """Pipelines draw the image's latents from what the VAE gives for it; `prepare` takes their mode. And one image is
    encoded at a time, as `prepare` does."""
    encode = vae.encode

    def settled(pixels):
        mode = torch.cat([encode(each[None]).latent_dist.mode() for each in pixels])
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda *_: mode, mode=lambda: mode))

    vae.encode = settled


@contextlib.contextmanager
def starting(kind: Kind, pipeline, noise: torch.Tensor) -> Iterator[dict]:
    """What the pipeline is told to start from `noise` `[N, C, F, H, W]` (of sound and picture, by stream), and from the
    kind's pictures. One that draws its own noise draws this."""
    streams = by_stream(noise)
    images = kind.images_for(len(streams["video"]))
    if not kind.draws:
        yield {"latents": kind.lay_out(noise), **images}
        return

    def drawn(
        shape, **_
    ):  # what isn't the clip's is of pictures, whose latents take its place, or of unheard sound
        return next(
            (each.clone() for each in streams.values() if tuple(shape) == each.shape), torch.zeros(shape)
        )

    with (
        mock.patch.object(sys.modules[type(pipeline).__module__], "randn_tensor", drawn),
        alone(kind, pipeline),
    ):
        yield images


@contextlib.contextmanager
def alone(kind: Kind, pipeline) -> Iterator[None]:
    """The pipeline with streams that don't look at each other, where the kind's model makes the picture alone."""
    if not kind.sound or kind.hears:
        yield
        return

    def isolated(module, inputs, told):
        return inputs, {**told, "isolate_modalities": True}

    hook = pipeline.transformer.register_forward_pre_hook(isolated, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def as_sampled(kind: Kind, pipeline) -> Iterator[None]:
    """With `output_type="latent"`: a pipeline that gives latents as its VAEs take them leaves them as sampled."""
    kept = lambda latents, *_: latents  # noqa: E731
    with contextlib.ExitStack() as stack:
        for name in ("_denormalize_latents", "_denormalize_audio_latents") if kind.sound else ():
            stack.enter_context(mock.patch.object(pipeline, name, kept))
        yield


def latents_of(kind: Kind, found, like):
    """A pipeline's output, of `output_type="latent"`: as the family has latents."""
    if kind.hears:
        return {"video": found.frames, "audio": found.audio}
    return kind.lay_back(found.frames, like)


@torch.no_grad()
def generate(kind: Kind, pipeline, noise: torch.Tensor, *, output_type="latent", **options):
    """What two steps of the real pipeline make of initial `noise` `[N, C, F, H, W]`: latents of that shape, or frames.

    Without guidance, unless `options` say so.
    """
    count, latent = len(by_stream(noise)["video"]), output_type == "latent"
    with (
        starting(kind, pipeline, noise) as given,
        as_sampled(kind, pipeline) if latent else contextlib.nullcontext(),
    ):
        found = pipeline(
            **{"prompt": [PROMPT] * count, **kind.without, **kind.call, **given, **options},
            num_inference_steps=2,
            output_type=output_type,
            generator=torch.Generator().manual_seed(seed_of(noise)),
        )
    return latents_of(kind, found, noise) if latent else found.frames


def seed_of(noise: torch.Tensor) -> int:
    """Of the noise that CogVideoX 5b's scheduler adds between the steps: that of a sample with this initial noise."""
    return int(by_stream(noise)["video"].flatten()[0].float().view(torch.int32))


def conditioning_of(family, prompts: list[str], kind: Kind | None = None) -> dict[str, torch.Tensor]:
    """Conditioning as a training batch has it: padded, with its mask; with the pictures of `kind` where it has some."""
    encoders = family.load_encoders(CPU)
    encoded = encoders.encode_prompts(prompts)
    if kind is not None and kind.pictures:
        images = [encoders.encode_images(kind.pictures, kind.size[0], prompt) for prompt in prompts]
        encoded = [text | image for text, image in zip(encoded, images, strict=True)]
    return stack_conditioning([padded_text(item, family.text_length) for item in encoded])


def changed(folder: Path, root: Path, part: str, **values: object) -> Path:
    """A copy of a pipeline with other entries in one part's configuration, or in `model_index`."""
    copy = shutil.copytree(folder, root / "changed")
    path = copy / "model_index.json" if part == "model_index" else next((copy / part).glob("*config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy
