"""What reaches the transformer: in training, and in its own pipeline at the same noise level of the same clip.

Both are recorded at the transformer's door: every argument of the call, and the rotary tables that it computes from
them. Training is the trainer's path (`draw_sample`, `build_policy`, `batched`, autocast); the pipeline is the real
class, loaded in the dtype that people sample in, whose latents are set before each step to the noisy clip of training.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from pgdpo.diffusion.streams import by_stream, each
from tests.models.families import Kind
from tests.models.road import CPU, PROMPT, open_pipeline, starting

STEPS = 5
PROMPTS = (PROMPT, "a blue star")  # of two lengths: the shorter one's padding is masked
DIFFERENCES = {
    "equal": "dtype, shape and every bit",
    "absent": "left out in training: the pipeline gives None, which is the argument's default",
    "padding": "what the mask hides holds zeros in training, or is cut off; what it shows is equal",
    "dtype": "the same numbers in another dtype",
}


class Door:
    """One kind in one dtype, in training and in its pipeline. `adapter`: a LoRA is trained, else all weights are."""

    def __init__(self, kind: Kind, folder: Path, precision: str, *, adapter: bool = True) -> None:
        from pgdpo.models import open_family

        self.kind, self.folder = kind, folder
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.config = self._config(precision, adapter)
        self.family = open_family(self.config.model)
        self.pipeline = open_pipeline(kind, folder, self.dtype)
        self.batch = self._batch()

    def calls(self) -> Iterator[tuple[dict, dict, torch.Tensor, torch.Tensor]]:
        """(training's call, the pipeline's, training's prediction, the pipeline's) of every step that the pipeline asks
        this transformer at; predictions as the pipeline holds latents."""
        from pgdpo.training.noising import draw_sample

        self._generate(
            each(torch.randn_like, self.batch["latents"]), None
        )  # the schedule, as the pipeline sets it
        asked = [i for i in range(len(self.levels())) if self.asked(i)]
        exact = self._config("fp32", adapter=True)
        noisy = [self._at(sigma, draw_sample, exact).noisy for sigma in self.levels()]
        with recorded(getattr(self.pipeline, self.family.transformer_folder)) as theirs:
            self._generate(noisy[0], lambda step: noisy[step] if step < len(noisy) else None)
        samples = [self._at(self.levels()[step], draw_sample, self.config) for step in asked]
        with recorded(self.transformer) as ours:
            answers = [self.forward(sample.noisy, sample.each, sample.conditioning) for sample in samples]
        for mine, their, answer in zip(ours, theirs, answers, strict=True):
            streams = by_stream(answer)
            answer = self.kind.lay_out(streams["video"])
            # What it answers for pictures that stand before the clip is no prediction.
            expected = their[1][0][:, -answer.shape[1] :]
            if self.kind.hears:
                sound = streams["audio"].transpose(1, 2).flatten(2)
                answer = torch.cat([answer.flatten(1), sound.flatten(1)], dim=1)
                expected = torch.cat([expected.flatten(1), their[1][1].flatten(1)], dim=1)
            yield mine[0], their[0], answer, expected

    @functools.cached_property
    def transformer(self) -> torch.nn.Module:
        from pgdpo.engine.policy import build_policy

        return build_policy(self.config, CPU)[1].eval()

    @functools.cached_property
    def forward(self) -> Callable:
        """The trainer's forward, without an engine around it: its autocast is that of a frozen reference."""
        from pgdpo.engine.engine import build_frozen
        from pgdpo.engine.group_batching import batched

        frozen = build_frozen(self.transformer, self.config)
        return torch.no_grad()(batched(self.family, frozen, self.config.train, group_size=2))

    def _config(self, precision: str, adapter: bool):
        from pgdpo.config.read import load_config

        keys = [f"model.path={self.folder}", "model.encoders=pipeline", "model.attention=native"]
        keys += ["model.kernels=eager", "model.compile=none", f"train.precision={precision}"]
        keys += ["model.gradient_checkpointing=none", "model.activation_offload=false"]
        keys += [] if adapter else ["model.adapter=null"]
        keys += [f"model.{name}={value}" for name, value in self.kind.keys.items()]
        keys += [] if self.kind.hears else ["data.fps=own"]
        return load_config(f"{self.kind.recipes[0]}.yaml", keys)

    def _batch(self) -> dict:
        """A pair of random clips for each of PROMPTS, with prompt and image encoded as `prepare` does."""
        from pgdpo.data.prepared import padded_text
        from pgdpo.data.visits.loading import collate

        encoders = self.family.load_encoders(CPU)
        # `prepare` runs the text encoder in bf16 on a GPU, and in fp32 on this CPU: here in the pipeline's dtype.
        encoders._load_text = lambda: self.pipeline
        encoders._load_vae = lambda: self.pipeline.vae  # of the image; `prepare` has it in fp32
        generator = torch.Generator().manual_seed(0)
        items = []
        for number, encoded in enumerate(encoders.encode_prompts(list(PROMPTS))):
            if pictures := self.kind.pictures:
                encoded |= encoders.encode_images(pictures, self.kind.size[0], PROMPTS[number])
            shapes = self.family.stream_shapes(*self.kind.size)
            clips = [
                {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
                for _ in range(2)
            ]
            if not self.kind.hears:
                clips = [clip["video"] for clip in clips]
            names = {"id": "a", "row": {}, "damage": None, "mask": None, "pair_id": number, "draw": 0}
            conditioning = padded_text(encoded, self.family.text_length)
            told = {"conditioning": conditioning, "captions": {}}
            items.append({**names, **told, "samples": clips})
        return collate(items)

    def _at(self, sigma: torch.Tensor, draw_sample: Callable, config):
        with mock.patch("pgdpo.training.noising.sigmas", lambda *_, **__: sigma.expand(len(PROMPTS))):
            return draw_sample(self.batch, config, self.family, CPU)

    def levels(self) -> list[torch.Tensor]:
        """The noise levels of the pipeline's steps; of a timestep of CogVideoX, the middle of those that mean it."""
        scheduler = self.pipeline.scheduler
        if self.family.prediction == "flow":
            return list(scheduler.sigmas[: len(scheduler.timesteps)].float())
        return list((scheduler.timesteps + 0.5) / 1000)

    def asked(self, step: int) -> bool:
        """Whether the pipeline asks this transformer, of two experts maybe."""
        low, high = self.family.sigma_range
        told = self.pipeline.scheduler.timesteps[step] / 1000
        return bool(low <= told < high) or (high == 1 and bool(told >= low))

    def _generate(self, latents: torch.Tensor, following: Callable | None) -> None:
        """The pipeline from `latents`; `following(step)`: what stands in place of the latents of that step."""

        def after(pipeline, step, timestep, values):
            clip, held, given = following(step + 1), values["latents"], self.kind.given
            if clip is None:
                return values
            clip = self.kind.lay_out(by_stream(clip)["video"]).to(held.dtype)
            if not given:
                return {"latents": clip}
            kept = given - (held.shape[1] - clip.shape[1])  # tokens of the clip itself
            return {"latents": torch.cat([held[:, :given], clip[:, kept:]], dim=1)}

        if self.kind.family == "cogvideox":  # others cast what they are given
            latents = latents.to(self.dtype)
        prompts = [*PROMPTS, *PROMPTS]  # of the chosen clips, and of the rejected ones
        with (
            torch.no_grad(),
            starting(self.kind, self.pipeline, latents) as given,
            contextlib.ExitStack() as stack,
        ):
            mixed = self.kind.image and self.kind.family == "hunyuan_video"
            for name, instead in INSTEAD.items() if mixed else ():
                call = functools.partial(instead, getattr(self.pipeline, name))
                stack.enter_context(mock.patch.object(self.pipeline, name, call))
            if self.kind.hears and following:
                scheduler = type(self.pipeline.scheduler)
                stack.enter_context(mock.patch.object(scheduler, "step", heard(scheduler.step, following)))
            self.pipeline(
                prompt=prompts,
                num_inference_steps=STEPS,
                output_type="latent",
                callback_on_step_end=following and after,
                **{**self.kind.without, **self.kind.call, **given},
            )


def heard(step: Callable, following: Callable) -> Callable:
    """The scheduler's `step` that gives for the sound, which no callback sets, what `following` says."""
    steps = itertools.count(1)

    def stepped(self, prediction, timestep, sample, **options):
        made = step(self, prediction, timestep, sample, **options)
        sound = by_stream(following(0))["audio"].transpose(1, 2).flatten(2)
        if sample.shape != sound.shape:
            return made
        clip = following(next(steps))
        return made if clip is None else (clip["audio"].transpose(1, 2).flatten(2).to(sample.dtype),)

    return stepped


def unmixed_latents(own: Callable, *arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """HunyuanVideoImageToVideoPipeline's `prepare_latents` with the latents as they are given."""
    names = list(inspect.signature(own).parameters)
    latents = dict(zip(names, arguments, strict=False))["latents"]
    return latents.float(), own(*arguments)[1]


def one_by_one(own: Callable, images: list, prompts: list[str], *arguments, **options) -> tuple:
    """Its Llava asked about a prompt at a time, as `prepare` asks it: a batch rounds otherwise."""
    read = [own(image, [text], *arguments, **options) for image, text in zip(images, prompts, strict=True)]
    return tuple(torch.cat(parts) for parts in zip(*read, strict=True))


INSTEAD = {"prepare_latents": unmixed_latents, "_get_llama_prompt_embeds": one_by_one}


class recorded:
    """A list that fills with (arguments by name, predictions) of every call of a transformer; `rope`: its tables."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.transformer, self.calls, self._rope = transformer, [], None

    def __enter__(self) -> list[tuple[dict, torch.Tensor]]:
        self._hooks = [self.transformer.register_forward_hook(self._called, with_kwargs=True)]
        if hasattr(self.transformer, "rope"):
            self._hooks.append(self.transformer.rope.register_forward_hook(self._turned))
        return self.calls

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()

    def _turned(self, module, inputs, tables) -> None:
        self._rope = tables

    def _called(self, module, inputs, options, output) -> None:
        given = inspect.signature(type(module).forward).bind(module, *inputs, **options).arguments
        given = {name: value for name, value in given.items() if name != "self"}
        self.calls.append((given | ({} if self._rope is None else {"rope": self._rope}), output))


def differences(transformer: torch.nn.Module, ours: dict, theirs: dict) -> dict[str, str]:
    """Argument -> one of DIFFERENCES. Raises AssertionError for a difference that is none of them."""
    found = {}
    for name in sorted(ours.keys() | theirs.keys()):
        text, mask = (
            f"{'audio_' * name.startswith('audio_')}{part}"
            for part in ("encoder_hidden_states", "encoder_attention_mask")
        )
        if mask in theirs and name in (text, mask):
            check_padding(ours[text], ours.get(mask), theirs[text], theirs[mask])
            found[name] = "padding"
        elif name not in ours:
            default = inspect.signature(type(transformer).forward).parameters[name].default
            assert theirs[name] is None and default is None, f"{name} is not told in training"
            found[name] = "absent"
        else:
            assert name in theirs, f"{name} is told in training alone"
            found[name] = kind_of(name, ours[name], theirs[name])
    return found


def kind_of(name: str, ours, theirs) -> str:
    if isinstance(theirs, tuple):
        kinds = {kind_of(name, mine, their) for mine, their in zip(ours, theirs, strict=True)}
        assert len(kinds) == 1, f"{name}: {kinds}"
        return kinds.pop()
    if not isinstance(theirs, torch.Tensor):
        assert ours == theirs and type(ours) is type(theirs), f"{name}: {ours!r} is not {theirs!r}"
        return "equal"
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} is not {tuple(theirs.shape)}"
    off = (ours.double() - theirs.double()).abs().max()
    assert off == 0, (
        f"{name}: off by {off:.3g} (training {ours.flatten()[:3]}, pipeline {theirs.flatten()[:3]})"
    )
    return "equal" if ours.dtype == theirs.dtype else "dtype"


def check_padding(text, mask, their_text, their_mask) -> None:
    """Text and mask end at the last token, or go on with zeros; a mask that hides nothing may be left out."""
    lengths = their_mask.sum(1).int().tolist()
    whole = torch.ones(text.shape[:2], dtype=their_mask.dtype) if mask is None else mask
    assert mask is not None or set(lengths) == {text.shape[1]}, (
        "the mask is left out where it hides something"
    )
    assert (text.dtype, whole.dtype) == (their_text.dtype, their_mask.dtype)
    for row, length in enumerate(lengths):
        assert torch.equal(text[row, :length], their_text[row, :length]), "encoder_hidden_states"
        assert text[row, length:].abs().sum() == 0, "encoder_hidden_states holds something where nobody looks"
        assert whole[row, :length].all() and not whole[row, length:].any(), "encoder_attention_mask"
