"""What is known of a model family before it is opened, and how clips are sampled where `evaluate` leaves that open:
as the model's card, or its own pipeline, says.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from pathlib import Path

from pgdpo.config.evaluate import EvaluateConfig
from pgdpo.files.pipeline import is_hub_id
from pgdpo.messages.errors import InputError


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


# `sample_neg_prompt` of wan/configs/shared_config.py in Wan-Video/Wan2.1 and Wan2.2.
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"  # noqa: RUF001
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"  # noqa: RUF001
    "杂乱的背景，三条腿，背景人很多，倒着走"  # noqa: RUF001
)
# The example in diffusers' pipeline_ltx.py, and the model card of Lightricks/LTX-Video.
LTX_NEGATIVE = "worst quality, inconsistent motion, blurry, jittery, distorted"


@dataclasses.dataclass(frozen=True)
class KnownFamily:
    """What a configuration knows of the family in `pgdpo/models/families/NAME.py` without opening it."""

    fps: float  # frames a second that its models were trained for
    sampling: SampleSettings  # of those of its models that have no card of their own in CARDS


# Rates: `export_to_video(fps=)` beside each model's pipeline in diffusers' documentation; LTX's is a default of its
# pipeline.
FAMILIES = {
    # Wan 2.1. Steps and guidance: WanPipeline.__call__'s defaults. The shift follows the size: `WAN21_SHIFTS`.
    "wan": KnownFamily(16.0, SampleSettings(50, 5.0, negative_prompt=WAN_NEGATIVE)),
    # Tencent-Hunyuan/HunyuanVideo, hyvideo/config.py: infer-steps, flow-shift; cfg-scale 1 (no guidance besides the
    # embedded one, model.guidance).
    "hunyuan_video": KnownFamily(24.0, SampleSettings(50, 1.0, None, 7.0)),
    # CogVideoXPipeline.__call__'s defaults, and the model cards' example.
    "cogvideox": KnownFamily(8.0, SampleSettings(50, 6.0)),
    # LTXPipeline.__call__'s defaults; its scheduler shifts by the number of tokens.
    "ltx": KnownFamily(25.0, SampleSettings(50, 3.0, negative_prompt=LTX_NEGATIVE)),
}
CARDS = {
    **{name: family.sampling for name, family in FAMILIES.items()},
    "toy": SampleSettings(16, 2.0),  # as configs/quickstart.yaml was measured
    # Wan-Video/Wan2.2, wan/configs/wan_t2v_A14B.py: sample_steps, sample_shift, sample_guide_scale (low noise first).
    "wan22_t2v_a14b": SampleSettings(40, 4.0, 3.0, 12.0, WAN_NEGATIVE),
    # The same, wan_i2v_A14B.py.
    "wan22_i2v_a14b": SampleSettings(40, 3.5, 3.5, 5.0, WAN_NEGATIVE),
    # The same, wan_ti2v_5B.py.
    "wan22_ti2v_5b": SampleSettings(50, 5.0, None, 5.0, WAN_NEGATIVE),
}
# The example in diffusers' pipeline_wan.py: "5.0 for 720P, 3.0 for 480P". Ours: a size between them takes the nearer's.
WAN21_SHIFTS = {480: 3.0, 720: 5.0}


def sample_settings(evaluate: EvaluateConfig, card: str, size: tuple[int, int]) -> SampleSettings:
    """Of the model that `card` names in `CARDS`, for clips of `size` (height, width); keys of `evaluate` go before.

    Without guidance (a `guidance_scale` of 1) no negative prompt is read, and none is named.
    """
    found = CARDS[card]
    if card == "wan":
        side = min(WAN21_SHIFTS, key=lambda side: abs(side - min(size)))
        found = dataclasses.replace(found, flow_shift=WAN21_SHIFTS[side])
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


@dataclasses.dataclass(frozen=True)
class Served:
    """Which models are of a family, by the classes that diffusers' folders name."""

    models: str  # for messages
    pipelines: tuple[str, ...]  # `_class_name` of model_index.json
    transformer: str  # of transformer/config.json, where the toy's folder has no index


SERVED = {
    "wan": Served(
        "Wan 2.1 and 2.2 text- and image-to-video",
        ("WanPipeline", "WanImageToVideoPipeline"),
        "WanTransformer3DModel",
    ),
    "hunyuan_video": Served(
        "HunyuanVideo 1.0",
        ("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
        "HunyuanVideoTransformer3DModel",
    ),
    "cogvideox": Served(
        "CogVideoX", ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline"), "CogVideoXTransformer3DModel"
    ),
    "ltx": Served(
        "LTX-Video 0.9",
        ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"),
        "LTXVideoTransformer3DModel",
    ),
}
# What the others are that might be taken for one of these, by how the names of their classes begin.
NEIGHBOURS = {
    "LTX2": "LTX-2, which makes sound too",
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
    """The family of the pipeline's class `found` at `model.path`. Raises InputError where it is of none that trains."""
    for name, served in SERVED.items():
        if found in (*served.pipelines, served.transformer):
            return name
    kin = max((start for start in NEIGHBOURS if found.startswith(start)), key=len, default=None)
    what = f"{NEIGHBOURS[kin]} ({found})" if kin else f"a {found}"
    families = "; ".join(
        f"`{name}`: {served.models} ({', '.join(served.pipelines)})" for name, served in SERVED.items()
    )
    raise InputError(
        f"model.path is {path!r}: it is {what}, no model of a family that trains. These do: {families}. Adding one: "
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

    def __str__(self) -> str:
        return f"{self.name or self.license}: {self.terms} ({self.link}, read {READ})"


READ = "2026-11-27"  # when the licences were
COGVIDEOX = Licence(
    "other",
    "https://huggingface.co/zai-org/CogVideoX-5b/blob/main/LICENSE",
    "cogvideox-license",
    "research is free; commercial use is to be registered, and goes up to 1 million visits a month",
)
# By hub id; the first that matches. Wan's code and weights have one licence. Of LTX-Video each version has its own.
LICENCES = {
    "toy": Licence(
        "apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", terms="as pgdpo, with which it ships"
    ),
    "Wan-AI/Wan2.[12]-*": Licence(
        "apache-2.0",
        "https://github.com/Wan-Video/Wan2.2/blob/main/LICENSE.txt",
        terms="free, with its notice",
    ),
    "hunyuanvideo-community/HunyuanVideo*": Licence(
        "other",
        "https://huggingface.co/tencent/HunyuanVideo/blob/main/LICENSE",
        "tencent-hunyuan-community",
        "not in the European Union, the United Kingdom and South Korea; above 100 million users a month by a licence "
        "of its own; outputs may improve no other model",
    ),
    "zai-org/CogVideoX-2b": Licence(
        "apache-2.0",
        "https://huggingface.co/zai-org/CogVideoX-2b/blob/main/LICENSE",
        terms="free, with its notice",
    ),
    "zai-org/CogVideoX*": COGVIDEOX,
    "Lightricks/LTX-Video*": Licence(
        "other",
        "https://huggingface.co/Lightricks/LTX-Video/tree/main",
        "ltxv-open-weights-license",
        "each version has a file of its own: see there",
    ),
}


def licence_of(path: str) -> Licence | None:
    """Of the weights that `model.path` names; None where that isn't known."""
    names = path.replace("THUDM/", "zai-org/")  # as it was called
    return next((one for known, one in LICENCES.items() if fnmatch.fnmatchcase(names, known)), None)


def licence_said(path: str) -> str:
    """The licence of the weights at `model.path`, in words."""
    known = licence_of(path)
    if known is not None:
        return str(known)
    where = f" (https://huggingface.co/{path})" if is_hub_id(path) else ""
    return f"that of the weights that you started from{where}"
