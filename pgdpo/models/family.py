"""What a model family is to the rest of the house.

A family's class knows all that is its own: its diffusers classes, its keys of the section `model`, how its models are
sampled, how noise enters, how the transformer is called, what its pipeline does around it, and what others call its
layers. A configuration reads the class without torch (`later.py`); opened at a path it reads that model.

Everything that stands beside the latents (prompt embeddings, an image, ...) travels as `conditioning`: a dict of
tensors with the batch first, under names that only the family reads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pgdpo.config.families import TOY_CARD, Licence, SampleSettings, check_family
from pgdpo.config.model import ModelConfig
from pgdpo.diffusion.streams import AUDIO, VIDEO, Shapes
from pgdpo.files.atomic import glance
from pgdpo.files.pipeline import ASSETS, INDEX, TOYS, is_hub_id, pipeline_in
from pgdpo.messages.errors import InputError
from pgdpo.models.experts import Experts
from pgdpo.models.folder import check_parts, read_architecture
from pgdpo.models.later import diffusers, torch
from pgdpo.models.protocols import Conditioning, Encoders, TokenSharing
from pgdpo.models.weights import hub
from pgdpo.models.weights.kept import compute_kept_in_fp32, hold_in

if TYPE_CHECKING:
    from pgdpo.config import DataConfig


class Family:
    """One model family at one path. A subclass names its diffusers classes and fills in what is its own."""

    # Before a path is opened.
    settings: ClassVar[type[ModelConfig]]  # the section `model` with the keys that this family has besides
    models: ClassVar[str]  # which these are, in a message
    pipelines: ClassVar[tuple[str, ...]]  # the classes in their model_index.json
    licences: ClassVar[
        dict[str, Licence]
    ] = {}  # of published weights by hub id, where the first pattern counts
    fps: ClassVar[float]  # frames a second that its models were trained for
    # How clips are sampled, by name of a model of this family; of the first, where `card` says no other.
    cards: ClassVar[dict[str, SampleSettings]]
    rate_key: ClassVar[str] = "data.fps"  # the key of a configuration that says another rate than `fps`
    # Where the toy's encoders may stand in for its own: what they make -> the transformer's key of its channels.
    takes_toy: ClassVar[Mapping[str, str]] = {}
    # Its layers under the names of the original repository, which ComfyUI reads: `adapters/comfyui.py` says how.
    comfyui: ClassVar[tuple[tuple, ...]] = ()

    transformer_class: type  # a `Diffusers`, as all classes of diffusers
    pipeline_class: type
    # What the transformer predicts: flow (eps - x) | v | epsilon; see pgdpo_kernels.noise_pair.
    prediction = "flow"
    num_train_timesteps = 1000
    text_length: int  # tokens that `prompt` is zero-padded to
    sharing: TokenSharing
    # The transformer attends to no padding of text, and takes a mask that says where it stands.
    masks_text = False
    masked_attention: str | None = None  # a block's attention with that mask, where it is to text alone
    told: tuple[float, ...] = ()  # by the configuration, in every call: part of a run's identity
    # What earlier versions told in other numbers, as unrounded where the pipeline rounds; part of a run's identity.
    told_rounded: str | None = None
    kept_in_fp32: str | None = None  # what autocast doesn't round (`kept.py`); of the identity too
    # Classes that torch.compile takes one by one, where diffusers names none.
    repeated_blocks: tuple[str, ...] = ()
    transformer_folder = "transformer"  # the part of the pipeline that trains
    experts: Experts | None = None  # where the pipeline has two transformers
    sigma_range = (0.0, 1.0)  # the noise levels that this transformer is asked about
    pictures: tuple[int, ...] = ()  # frames of the clip that the model is given: 0 the first, -1 the last
    image_names: tuple[str, ...] = ()  # conditioning that `encode_images` gives of them
    # Whose loss counts: `video`, and beside it what the model makes with the picture (`diffusion/streams.py`).
    streams: tuple[str, ...] = (VIDEO,)
    # Latent frames before the clip's own: copies of its first, which fill up a patch and count nowhere.
    lead = 0

    def __init__(self, model: ModelConfig) -> None:
        self.model = model
        self.streams = model.streams
        self.on_hub = is_hub_id(model.path)
        self.source = self._resolve()
        found = pipeline_in(Path(self.source), model.path, bare=model.encoders == "toy")
        check_family(model.family, found, model.path)
        self._architecture = read_architecture(
            self.transformer_class,
            self.source,
            self.transformer_folder,
            path=model.path,
            family=model.family,
        )
        if model.encoders == "toy":
            self.text_length = toy_encoders().text_length
        else:
            self._check_parts(Path(self.source))

    @property
    def card(self) -> str:
        """Which of `cards` says how this model is sampled."""
        return next(iter(self.cards))

    def sampling(self, size: tuple[int, int]) -> SampleSettings:
        """How clips of `size` (height, width) are sampled where `evaluate` does not say."""
        return TOY_CARD if self.model.encoders == "toy" else self.cards[self.card]

    @property
    def reads_pictures(self) -> bool:
        """Whether a text encoder reads a prompt together with the row's pictures: `encode_images` gives it then."""
        return "prompt" in self.image_names

    @property
    def own_fps(self) -> float:
        """Frames a second that this very model was trained for."""
        return self.model.fps

    def check_fps(self, data: DataConfig) -> None:
        """Raises InputError where the clips' rate would not be the one that the model knows and nobody set it."""
        if data.fps is None and self.own_fps != self.model.fps:
            raise InputError(
                f"data.fps is not set: the model in model.path, {self.model.path!r}, was trained at {self.own_fps:g} "
                f"frames a second, most of its family at {self.model.fps:g}: set data.fps, to {self.own_fps:g} say"
            )

    def _resolve(self) -> str:
        """The model's folder, for a hub id that of its commit; raises InputError for a folder that is not there."""
        path, revision = self.model.path, self.model.revision
        if self.on_hub:
            return str(hub.snapshot(self.model))
        folder = ASSETS / TOYS[path] if path in TOYS else Path(path)
        if revision is not None:
            raise InputError(
                f"model.revision is {revision!r}, and model.path {path!r}: a folder has no revisions: leave it out"
            )
        return str(folder)

    def read_index(self) -> dict:
        """model_index.json: the pipeline's class and settings; a transformer beside the toy's encoders has none."""
        index = Path(self.source) / INDEX
        return json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}

    def check_toy(self) -> None:
        """Raises InputError unless what the toy's encoders make is as wide as what the transformer takes."""
        toy = toy_encoders()
        made = {"latents": toy.latent_channels, "sound": toy.sound_channels, "embeddings": toy.text_dim}
        for what, key in self.takes_toy.items():
            if made[what] != self._architecture[key]:
                raise InputError(
                    f"model.encoders is 'toy': its {what} have {made[what]} channels, the transformer of model.path "
                    f"{self.model.path!r} takes {self._architecture[key]} ({key}): set model.encoders to `pipeline`, "
                    f"or take a transformer made for the toy (model.path: {' or '.join(TOYS)})"
                )

    def _check_parts(self, folder: Path) -> None:
        check_parts(self.pipeline_class, folder, self.model.path)

    def architecture(self) -> dict:
        """The transformer's configuration, as diffusers stores it."""
        return dict(self._architecture)

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns that the transformer joins into one token."""
        size = self._architecture["patch_size"]
        if isinstance(size, int):
            return self._architecture.get("patch_size_t") or 1, size, size
        return tuple(size)

    def tokens(self, latent_shape: tuple[int, ...]) -> int:
        """Video tokens of latents of shape `(C, F, H, W)`."""
        return math.prod(n // p for n, p in zip(latent_shape[1:], self.patch, strict=True))

    def stream_tokens(self, shapes: Shapes) -> dict[str, int]:
        """Tokens of each stream, of latents of these `stream_shapes`: of what stands beside the picture one a time."""
        return {name: self.tokens(shape) if name == VIDEO else shape[1] for name, shape in shapes.items()}

    def load_scheduler(self, flow_shift: float | None = None) -> diffusers.SchedulerMixin:
        """The pipeline's own scheduler, of the class that its folder names; `flow_shift` replaces its shift.

        Raises InputError if it cannot be read.
        """
        any_scheduler = diffusers.FlowMatchEulerDiscreteScheduler  # all keep their configuration alike
        try:
            name = any_scheduler.load_config(self.source, subfolder="scheduler")["_class_name"]
            scheduler = getattr(diffusers, name).from_pretrained(self.source, subfolder="scheduler")
        except (OSError, KeyError, AttributeError) as error:
            raise InputError(
                f"model.path is {self.model.path!r}: its scheduler cannot be read "
                f"({' '.join(str(error).split())[:200]}): take the model's own scheduler/scheduler_config.json"
            ) from error
        if flow_shift is None:
            return scheduler
        key = "flow_shift" if "flow_shift" in scheduler.config else "shift"  # multistep solvers | Euler's
        return scheduler.from_config(scheduler.config, use_dynamic_shifting=False, **{key: flow_shift})

    def from_architecture(self, config: dict) -> torch.nn.Module:
        """A transformer with fresh weights on the current default device."""
        return compute_kept_in_fp32(self.transformer_class.from_config(config))

    def load_transformer(self, *, dtype: torch.dtype, random_init_seed: int | None = None) -> torch.nn.Module:
        """The pipeline's transformer; modules that diffusers keeps in fp32 stay so.

        `random_init_seed`: take the architecture only, with weights drawn from this seed. Raises InputError if the
        weights are not there.
        """
        if random_init_seed is None:
            return self.load_part(self.transformer_folder, dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_init_seed)
            transformer = self.from_architecture(self.architecture())
        return hold_in(transformer, dtype)

    def load_part(self, folder: str, dtype: torch.dtype) -> torch.nn.Module:
        """A transformer of the pipeline, from its subfolder or from `model.transformer`."""
        own = self.start_folder if folder == self.transformer_folder else None
        if own is None:
            self.fetch(folder)
        source, where = (self.source, {"subfolder": folder}) if own is None else (str(own), {})
        try:
            transformer = self.transformer_class.from_pretrained(source, torch_dtype=dtype, **where)
        except OSError as error:
            reason = " ".join(str(error).split())[:200]
            if own is not None:
                raise self._no_start(
                    f"the weights in {own} do not load ({reason}): copy the folder whole"
                ) from error
            raise InputError(
                f"model.path is {self.model.path!r}: the weights in {folder}/ do not load ({reason}): copy the folder "
                "whole, or set model.random_init to train its architecture from random weights"
            ) from error
        return compute_kept_in_fp32(transformer)

    @property
    def start_folder(self) -> Path | None:
        """The transformer's folder that `model.transformer` names, or holds; None where the path's own is taken."""
        given = self.model.transformer
        if given is None:
            return None
        return given / self.transformer_folder if (given / self.transformer_folder).is_dir() else given

    def part_folder(self, part: str) -> Path | None:
        """Where a part of the pipeline lies, the transformer where `model.transformer` says; None for a hub id's, whose
        weights need not be here: see `fetch`."""
        if part == self.transformer_folder and self.start_folder is not None:
            return self.start_folder
        return None if self.on_hub else Path(self.source) / part

    def fetch(self, *parts: str) -> None:
        """Download the weights of a hub id's parts where they are not here. Raises InputError where that fails."""
        if self.on_hub:
            hub.snapshot(self.model, *parts)

    def expert_at(self, transformer: torch.nn.Module, sigma: float) -> torch.nn.Module:
        """The transformer that the pipeline asks at `sigma`, given the one that this family trains. Another one is
        loaded when it is first asked for, and held until `release`."""
        return transformer if self.experts is None else self.experts.at(transformer, sigma)

    def release(self) -> None:
        """Let go of what `expert_at`, and `sample` by it, has loaded."""
        if self.experts is not None:
            self.experts.release()

    def guidance_at(self, sigma: float, first: float, second: float | None) -> float:
        """Of the guidance scales of a pipeline of two experts, the one at `sigma`; `second` is None without them."""
        return first if self.experts is None else self.experts.guidance(sigma, first, second)

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """`(C, F, H, W)` of the latents of a clip of that many frames and pixels."""
        encoders = toy_encoders() if self.model.encoders == "toy" else self
        return encoders.clip_to_latents(num_frames, height, width)

    def stream_shapes(self, num_frames: int, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each stream's latents: of the picture `latent_shape`, of the sound `(C, L, M)`."""
        return {VIDEO: self.latent_shape(num_frames, height, width)}

    def clip_to_latents(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """`latent_shape` for the pipeline's own VAE, from its configuration."""
        raise NotImplementedError

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raises InputError, naming what fits, unless codec and transformer take a clip of that size."""
        encoders = toy_encoders() if self.model.encoders == "toy" else self
        encoders.check_size(num_frames, height, width)
        self.check_positions(num_frames, height, width)

    def check_positions(self, num_frames: int, height: int, width: int) -> None:
        """Raises InputError where the transformer's table of positions ends before the clip; most compute theirs."""

    def example_conditioning(self, batch: int, latent_shape: tuple[int, ...]) -> Conditioning:
        """Empty conditioning of the right shapes on the current default device, to count FLOPs and bytes."""
        raise NotImplementedError

    def level(self, sigma: torch.Tensor) -> torch.Tensor:
        """What `noise_pair` takes as `level` for the share `sigma` of the way to pure noise."""
        return sigma

    def trimmed(self, conditioning: Conditioning) -> Conditioning:
        """Conditioning `[N, ...]` whose text ends with the longest of the N, where padding does not count.

        `prompt_mask` is left out where all are as long: attention then needs no mask. Reads the mask's values, so that
        it is best called before they go to a GPU.
        """
        if not self.masks_text:
            return conditioning
        lengths = conditioning["prompt_mask"].sum(1).tolist()
        longest = max(*lengths, 1)
        trimmed = dict(conditioning)
        for name in ("prompt", "prompt_mask"):
            trimmed[name] = conditioning[name][:, :longest]
        if min(lengths) == longest:
            del trimmed["prompt_mask"]
        return trimmed

    def drop_whole_masks(self, transformer: torch.nn.Module) -> None:
        """Have attention get no mask in calls in which all text counts, where diffusers' forward would make one."""

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """What the pipeline tells its transformer at the noise level `sigma` `[N]`, to the bit.

        fp32, as FlowMatchEulerDiscreteScheduler's are. Where a pipeline rounds, several levels are told as one number.
        """
        return sigma * self.num_train_timesteps

    def predict(
        self, transformer: Callable, noisy: torch.Tensor, sigma: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        """The transformer's prediction, of `noisy`'s shape `[N, C, F, H, W]`, at `sigma` `[N]`.

        With several `streams` both are mappings; samples without sound have none of it, and their picture is predicted
        as if the model made no other.

        All is told as its pipeline tells it: in the dtype of `noisy`, which stands for the dtype that the pipeline's
        transformer is loaded in.
        """
        raise NotImplementedError

    def loss_mask(self, latents: torch.Tensor, conditioning: Conditioning) -> torch.Tensor | None:
        """Where the error counts, as `pair_errors` takes it; None: everywhere."""
        return None

    def sample(
        self,
        transformer: torch.nn.Module,
        noise: torch.Tensor,
        conditioning: Conditioning,
        negative: Conditioning,
        how: SampleSettings,
    ) -> torch.Tensor:
        """Latents `[N, C, F, H, W]` from initial `noise` of that shape, through diffusers' own pipeline; of several
        `streams` both are mappings of all of them.

        `negative`: the conditioning of the negative prompt, for classifier-free guidance. Of `how` a family reads what
        it has: two experts `guidance_scale_2`, flow matching `flow_shift`.
        """
        raise NotImplementedError

    def save_adapter(self, folder: Path, state: dict[str, torch.Tensor], metadata: dict) -> None:
        """Write a LoRA under diffusers' names, so that the pipeline's `load_lora_weights(folder)` takes it."""
        self.pipeline_class.save_lora_weights(
            folder,
            transformer_lora_layers=state,
            transformer_lora_adapter_metadata=metadata,
            safe_serialization=True,
        )

    def load_encoders(self, device: torch.device) -> Encoders:
        """The pipeline's own VAE and text encoder, or the toy's stand-ins, as `model.encoders` asks."""
        if self.model.encoders == "toy":
            return toy_encoders(sounding=AUDIO in self.streams)
        return self.pipeline_encoders(device)

    def pipeline_encoders(self, device: torch.device) -> Encoders:
        raise NotImplementedError

    def fingerprint(self, *parts: str) -> str:
        """Digest of the named subfolders, as `glance` has it.

        A hub id stands for itself, with its revision where the configuration names one.
        """
        folders = {part: self.part_folder(part) for part in parts}
        if None in folders.values():
            return "@".join(filter(None, (self.model.path, self.model.revision)))
        return glance(folders)


def toy_encoders(*, sounding: bool = False) -> Encoders:
    """What stands in for a pipeline's encoders where nothing is downloaded; `sounding`: for sound too."""
    from pgdpo.toy.encoders import ToyEncoders

    return ToyEncoders(sounding=sounding)
