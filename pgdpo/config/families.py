"""The model families, whose classes stand in `pgdpo/models/families/NAME.py`, as a configuration knows them: by name,
and without torch.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
from pathlib import Path
from typing import Any

from pgdpo import plugins
from pgdpo.config.evaluate import EvaluateConfig
from pgdpo.files.pipeline import TOYS, is_hub_id
from pgdpo.messages.errors import InputError


def families() -> tuple[str, ...]:
    """Their names."""
    return plugins.found(plugins.FAMILIES)


def family_class(name: str) -> type[Any]:
    """The class of one of `families()`, a `models.family.Family`, which is not opened at any path.

    Raises ValueError for another name: `auto` is one to be resolved, as `load_config` and `open_family` do.
    """
    if name not in families():
        raise ValueError(
            f"model.family is {name!r}: name one of {', '.join(families())}, or read by load_config"
        )
    return plugins.load(plugins.FAMILIES, name, "FAMILY")


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """What a pipeline is told besides prompt, size and noise."""

    steps: int
    guidance_scale: float
    guidance_scale_2: float | None = None  # of Wan 2.2's low-noise expert
    flow_shift: float | None = None  # None: the scheduler's own
    negative_prompt: str = ""  # empty too where there is no guidance, which alone reads it

    def __str__(self) -> str:
        second = "" if self.guidance_scale_2 is None else f" (low-noise expert: {self.guidance_scale_2:g})"
        shift = "the scheduler's own" if self.flow_shift is None else f"{self.flow_shift:g}"
        negative = f"{self.negative_prompt!r}" if self.negative_prompt else "empty"
        return (
            f"{self.steps} steps, guidance {self.guidance_scale:g}{second}, flow shift {shift}, negative prompt "
            f"{negative}"
        )


TOY_CARD = SampleSettings(16, 2.0)  # as configs/quickstart.yaml was measured


def sample_settings(evaluate: EvaluateConfig, found: SampleSettings) -> SampleSettings:
    """`found` of the model (`Family.sampling`), with the keys of `evaluate` before it.

    Without guidance (a `guidance_scale` of 1) no negative prompt is read, and none is named.
    """
    if evaluate.guidance_scale is not None and found.guidance_scale_2 is not None:
        # As WanPipeline: one guidance scale that is given is that of both experts.
        found = dataclasses.replace(found, guidance_scale_2=evaluate.guidance_scale)
    given = {
        "steps": evaluate.sampling_steps,
        "guidance_scale": evaluate.guidance_scale,
        "guidance_scale_2": evaluate.guidance_scale_2,
        "flow_shift": evaluate.flow_shift,
        "negative_prompt": evaluate.negative_prompt,
    }
    found = dataclasses.replace(found, **{key: value for key, value in given.items() if value is not None})
    return found if found.guidance_scale > 1 else dataclasses.replace(found, negative_prompt="")


# What the others are that might be taken for one of these, by how the names of their classes begin.
NEIGHBOURS = {
    "LTX2Condition": "LTX-2 from keyframes",
    "LTX2InContext": "LTX-2 with an IC-LoRA",
    "LTX2HDR": "LTX-2 in HDR",
    "LTX2DFR": "LTX-2's refiner",
    "LTX2LatentUpsample": "LTX-2's upsampler of latents",
    "LTX2VideoDiffusionDecode": "LTX-2.5's diffusion decoder",
    "LTXI2VLongMultiPrompt": "LTX-Video with many prompts",
    "LTXLatentUpsample": "LTX-Video's upsampler of latents",
    "HunyuanVideo15": "HunyuanVideo 1.5",
    "HunyuanVideoFramepack": "FramePack",
    "HunyuanSkyreels": "SkyReels-V1",
    "SkyReelsV2": "SkyReels-V2",
    "WanVACE": "Wan VACE",
    "WanAnimate": "Wan Animate",
    "WanVideoToVideo": "Wan's video-to-video",
    "CogVideoXFunControl": "CogVideoX-Fun Control",
    "CogVideoXVideoToVideo": "CogVideoX's video-to-video",
    "Cosmos": "Cosmos",
    "Mochi": "Mochi 1",
    "Kandinsky5": "Kandinsky 5",
    "Kandinsky6": "Kandinsky 6",
    "SanaVideo": "SANA-Video",
    "StableVideoDiffusion": "Stable Video Diffusion",
}
ADDING = Path(__file__).parent.parent / "models" / "README.md"  # of a checkout, and of an installation


def family_of(found: str, path: str) -> str:
    """The family of the pipeline's class `found` at `model.path`, or of a transformer's. Raises InputError where it is
    of none that trains."""
    classes = {name: family_class(name) for name in families()}
    for name, family in classes.items():
        if found in (*family.pipelines, inspect.getattr_static(family, "transformer_class").name):
            return name
    kin = max((start for start in NEIGHBOURS if found.startswith(start)), key=len, default=None)
    what = f"{NEIGHBOURS[kin]} ({found})" if kin else f"a {found}"
    listed = "; ".join(
        f"`{name}`: {family.models} ({', '.join(family.pipelines)})" for name, family in classes.items()
    )
    raise InputError(
        f"model.path is {path!r}: it is {what}, no model of a family that trains. These do: {listed}. Adding one: "
        f"{ADDING}"
    )


def check_family(family: str, found: str, path: str) -> None:
    """Raises InputError unless the pipeline's class `found` at `model.path` is of `model.family`."""
    own = family_of(found, path)
    if own != family:
        raise InputError(
            f"model.family is `{family}`, and model.path {path!r} holds a {found}, which is of `{own}`: set "
            f"model.family to `{own}`, or leave it out"
        )


@dataclasses.dataclass(frozen=True)
class Licence:
    """The terms of published weights, as cards on the Hugging Face Hub name them."""

    license: str  # the hub's id, or `other`
    link: str
    name: str | None = None  # of one without an id
    terms: str = "see there"
    read: str | None = (
        None  # when its text was; where it was not, the name is by what the model's publisher says
    )

    def __str__(self) -> str:
        read = f"read {self.read}" if self.read else "not read by us"
        return f"{self.name or self.license}: {self.terms} ({self.link}, {read})"


FREE = "free, with its notice"  # the terms of Apache-2.0
TOY = Licence(
    "apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", terms="as pgdpo, with which it ships"
)


def licence_of(family: str, path: str) -> Licence | None:
    """Of the weights that `model.path` names; None where that isn't known."""
    if path in TOYS:
        return TOY
    known = family_class(family).licences
    return next((known[pattern] for pattern in known if fnmatch.fnmatchcase(path, pattern)), None)


def licence_said(family: str, path: str) -> str:
    """The licence of the weights at `model.path`, in words."""
    known = licence_of(family, path)
    if known is not None:
        return str(known)
    where = f" (https://huggingface.co/{path})" if is_hub_id(path) else ""
    return f"that of the weights that you started from{where}"
