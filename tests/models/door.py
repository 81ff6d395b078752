"""What reaches the transformer: in training, and in its own pipeline at the same noise level of the same clip.

Both are recorded at the transformer's door: every argument of the call, and the rotary tables that it computes from
them. Training is the trainer's path (`draw_sample`, `build_policy`, `batched`, autocast); the pipeline is the real
class, loaded in the dtype that people sample in, whose latents are set before each step to the noisy clip of training.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import torch
from PIL import Image

from tests.models import tiny_pipelines as tiny
from tests.models import tiny_wan

STEPS = 5
KINDS = {
    "equal": "dtype, shape and every bit",
    "absent": "left out in training: the pipeline gives None, which is the argument's default",
    "padding": "what the mask hides holds zeros in training, or is cut off; what it shows is equal",
    "dtype": "the same numbers in another dtype",
}


@dataclass(frozen=True)
class Mode:
    """A kind of pipeline, and how it is opened and called."""

    recipe: str  # a shipped configuration
    save: Callable[..., Path]  # of a tiny pipeline
    saved: tuple = ()
    options: dict = field(default_factory=dict)  # of `save`
    size: tuple[int, int, int] = (9, 32, 48)  # frames, height, width
    keys: tuple[str, ...] = ()  # of the configuration
    called: dict = field(default_factory=dict)  # the pipeline's own
    image: bool = False


def wan(recipe: str, kind: str, *keys: str, image: bool = False) -> Mode:
    size = tiny_wan.SIZES[kind]
    return Mode(recipe, tiny_wan.save_tiny, (kind,), size=size, keys=keys, image=image)


def cogvideox(recipe: str, *, rotary: bool) -> Mode:
    return Mode(recipe, tiny.save_tiny_cogvideox, options={"rotary": rotary})


HUNYUAN, LTX = ("hunyuan_video", tiny.save_tiny_hunyuan_video), ("ltx_video", tiny.save_tiny_ltx)
HIGH, LOW = "model.expert=high_noise", "model.expert=low_noise"
MODES = {
    "wan 2.1 t2v": wan("wan21_1.3b", "2.1 t2v"),
    "wan 2.1 i2v": wan("wan21_i2v_14b", "2.1 i2v", image=True),
    "wan 2.2 t2v a14b high": wan("wan22_a14b", "2.2 t2v a14b", HIGH),
    "wan 2.2 t2v a14b low": wan("wan22_a14b", "2.2 t2v a14b", LOW),
    "wan 2.2 i2v a14b high": wan("wan22_i2v_a14b", "2.2 i2v a14b", HIGH, image=True),
    "wan 2.2 i2v a14b low": wan("wan22_i2v_a14b", "2.2 i2v a14b", LOW, image=True),
    "wan 2.2 ti2v 5b t2v": wan("wan22_ti2v_5b", "2.2 ti2v 5b"),
    "wan 2.2 ti2v 5b i2v": wan("wan22_ti2v_5b", "2.2 ti2v 5b", "model.task=image_to_video", image=True),
    "hunyuan_video": Mode(*HUNYUAN),
    "hunyuan_video guidance 3.3": Mode(
        *HUNYUAN, keys=("model.guidance=3.3",), called={"guidance_scale": 3.3}
    ),
    "cogvideox 2b": cogvideox("cogvideox_2b", rotary=False),
    "cogvideox 5b": cogvideox("cogvideox_5b", rotary=True),
    "ltx": Mode(*LTX, size=(9, 64, 96)),
    "ltx 8 fps": Mode(
        *LTX, size=(9, 64, 96), keys=("model.frame_rate=8", "data.fps=8"), called={"frame_rate": 8}
    ),
}


class Door:
    """One mode in one dtype, in training and in its pipeline. `adapter`: a LoRA is trained, else all weights are."""

    def __init__(self, mode: Mode, folder: Path, precision: str, *, adapter: bool = True) -> None:
        from pgdpo.models import open_family

        self.mode, self.folder = mode, folder
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.config = self._config(precision, adapter)
        self.family = open_family(self.config.model)
        self.pipeline = self._open_pipeline()
        self.batch = self._batch()

    def calls(self) -> Iterator[tuple[dict, dict, torch.Tensor, torch.Tensor]]:
        """(training's call, the pipeline's, training's prediction, the pipeline's) of every step that the pipeline asks
        this transformer at."""
        from pgdpo.training.noising import draw_sample

        self._generate(
            torch.randn(2, *self.batch["latents"].shape[1:]), None
        )  # the schedule, as the pipeline sets it
        asked = [i for i in range(len(self.levels())) if self.asked(i)]
        exact = self._config("fp32", adapter=True)
        noisy = [self._at(sigma, draw_sample, exact).noisy for sigma in self.levels()]
        with recorded(getattr(self.pipeline, self.family.transformer_folder)) as theirs:
            self._generate(noisy[0], lambda step: noisy[step] if step < len(noisy) else None)
        with recorded(self.transformer) as ours:
            for step in asked:
                sample = self._at(self.levels()[step], draw_sample, self.config)
                self.forward(sample.noisy, sample.both, sample.conditioning)
        for mine, their in zip(ours, theirs, strict=True):
            yield mine[0], their[0], mine[1], their[1]

    def forward_call(self, arguments: dict) -> torch.Tensor:
        """The transformer's answer to a call that was recorded, or to a changed one, in training's autocast."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.transformer(**arguments)[0]

    @functools.cached_property
    def transformer(self) -> torch.nn.Module:
        from pgdpo.engine.policy import build_policy

        return build_policy(self.config, torch.device("cpu"))[1].eval()

    @functools.cached_property
    def forward(self) -> Callable:
        """The trainer's forward, without an engine around it: its autocast is that of a frozen reference."""
        from pgdpo.engine.engine import build_frozen
        from pgdpo.engine.pair_batching import batched

        return torch.no_grad()(batched(self.family, build_frozen(self.transformer, self.config), "joint"))

    def _config(self, precision: str, adapter: bool):
        from pgdpo.config.read import load_config

        keys = [f"model.path={self.folder}", "model.encoders=pipeline", "model.attention=native"]
        keys += ["model.kernels=eager", "model.compile=none", f"train.precision={precision}"]
        keys += ["model.gradient_checkpointing=none", "model.activation_offload=false"]
        keys += [] if adapter else ["model.adapter=null"]
        return load_config(f"{self.mode.recipe}.yaml", [*keys, *self.mode.keys])

    def _open_pipeline(self):
        pipeline_class, whole = self.family.pipeline_class, {}
        if (
            self.config.model.family == "wan"
        ):  # as its model cards load it: the VAE and the image encoder in fp32
            from diffusers import AutoencoderKLWan
            from transformers import CLIPVisionModel

            whole["vae"] = AutoencoderKLWan.from_pretrained(self.folder, subfolder="vae")
            if (self.folder / "image_encoder").is_dir():
                whole["image_encoder"] = CLIPVisionModel.from_pretrained(
                    self.folder, subfolder="image_encoder"
                )
        pipeline = pipeline_class.from_pretrained(self.folder, torch_dtype=self.dtype, **whole)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _batch(self) -> dict:
        """One pair of random clips, with its prompt and image encoded as `prepare` does."""
        from pgdpo.data.prepared import collate, padded_text

        encoders = self.family.load_encoders(torch.device("cpu"))
        # `prepare` runs the text encoder in bf16 on a GPU, and in fp32 on this CPU: here in the pipeline's dtype.
        encoders._load_text = lambda: self.pipeline
        conditioning = padded_text(encoders.encode_prompts([tiny.PROMPT])[0], self.family.text_length)
        if self.mode.image:
            conditioning |= encoders.encode_image(self._picture, self.mode.size[0])
        generator = torch.Generator().manual_seed(0)
        clips = torch.randn(2, *self.family.latent_shape(*self.mode.size), generator=generator)
        names = {"id": "a", "row": {}, "damage": None, "mask": None, "pair_id": 1, "draw": 0}
        return collate([{**names, "chosen": clips[0], "rejected": clips[1], "conditioning": conditioning}])

    @property
    def _picture(self):
        return tiny_wan.picture(self.mode.saved[0])

    def _at(self, sigma: torch.Tensor, draw_sample: Callable, config):
        with mock.patch("pgdpo.training.noising.sigmas", lambda *_, **__: sigma.view(1)):
            return draw_sample(self.batch, config, self.family, torch.device("cpu"))

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

        def laid_out(clip: torch.Tensor) -> torch.Tensor:
            if self.config.model.family == "cogvideox":
                return clip.transpose(1, 2)
            return self.family._pack(clip) if self.config.model.family == "ltx" else clip

        def after(pipeline, step, timestep, values):
            clip = following(step + 1)
            return values if clip is None else {"latents": laid_out(clip).to(values["latents"].dtype)}

        frames, height, width = self.mode.size
        options = {"num_frames": frames, "height": height, "width": width, **self.mode.called}
        if self.mode.image:
            options["image"] = Image.fromarray(self._picture)
        if self.config.model.family != "hunyuan_video":  # it is told its guidance
            options["guidance_scale"] = 1.0
        if self.config.model.family == "cogvideox":  # others cast what they are given
            latents = latents.to(self.dtype)
        with torch.no_grad():
            self.pipeline(
                prompt=[tiny.PROMPT] * 2,
                num_inference_steps=STEPS,
                latents=laid_out(latents),
                output_type="latent",
                callback_on_step_end=following and after,
                **options,
            )


class recorded:
    """A list that fills with (arguments by name, prediction) of every call of a transformer; `rope`: its tables."""

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
        self.calls.append((given | ({} if self._rope is None else {"rope": self._rope}), output[0]))


def differences(transformer: torch.nn.Module, ours: dict, theirs: dict) -> dict[str, str]:
    """Argument -> one of KINDS. Raises AssertionError for a difference that is none of them."""
    text, mask = "encoder_hidden_states", "encoder_attention_mask"
    found = {}
    for name in sorted(ours.keys() | theirs.keys()):
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
