"""Every kind of pipeline that trains, tiny. What holds for all is tested along `KINDS`, or along `FAMILIES`.

A new family, or a new kind of one, is a line of `KINDS` and the function that saves its pipeline.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pgdpo.config import family_class
from pgdpo.models import open_family
from pgdpo.models.family import Family
from tests.models.tiny_ltx2 import save_tiny_ltx2
from tests.models.tiny_pipelines import save_tiny_cogvideox, save_tiny_hunyuan_video, save_tiny_ltx
from tests.models.tiny_wan import save_tiny

Size = tuple[int, int, int]  # frames, height, width


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of pipeline: how a tiny one is saved, opened and called, and what is known of the published ones."""

    family: str  # a file of pgdpo/models/families
    save: Callable[[Path], Path]
    recipes: tuple[str, ...]  # its shipped configurations
    card: str  # of its family's `cards`
    told: dict  # what that says its pipeline is called with, and the `shift` of its scheduler unless that is its own
    reads: int  # tokens of a prompt that its shortest text encoder reads, the tokenizer's own among them
    tiled: tuple[Size, Size]  # a clip larger than a tile of its VAE, and one as large
    negative: str = ""  # how the negative prompt of the card begins
    prediction: str = "flow"
    masks_text: bool = False  # its transformer takes a mask of the text's padding
    size: Size = (9, 32, 48)
    step: tuple[int, int] = (4, 16)  # frames behind the first, and pixels on a side, come in so many
    keys: dict = field(default_factory=dict)  # of the section `model`
    called: dict = field(default_factory=dict)  # what the pipeline is told where `keys` tell the model
    guidance: str = "guidance_scale"  # the pipeline's name of classifier-free guidance
    unguided: dict = field(default_factory=dict)  # what leaves out its other guidance
    sound: bool = False  # its pipeline makes sound too
    hears: bool = False  # and so does the model as it is trained
    image: bool = False  # it starts from one
    last_image: bool = False  # and ends with another
    each_image: bool = False  # its pipeline is called with an image for each prompt
    cut: int = 0  # latent frames at the beginning that its pipeline leaves out of what it gives
    keyframes: tuple[int, ...] = ()  # and is given other frames besides
    conditions: bool = False  # its pipeline takes them as images with the numbers of their frames
    given: int = 0  # tokens of them that stand before those that are noisy
    draws: bool = False  # its pipeline draws the first noise itself
    whole: tuple[str, ...] = ()  # parts that its model card loads in fp32
    loads: dict = field(default_factory=dict)  # options of the pipeline's `load_lora_weights`
    original: str = ""  # its first blocks' linear layers under ComfyUI's names; of a model that ComfyUI knows
    # Latents as the pipeline holds them, and those as [N, C, F, H, W] again, of the shape of the second.
    lay_out: Callable[[torch.Tensor], torch.Tensor] = lambda latents: latents
    lay_back: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda held, like: held

    def open(self, folder: Path, **keys: object) -> Family:
        """The family of a saved pipeline; `keys` of the section `model` go before the kind's own."""
        settings = family_class(self.family).settings
        return open_family(settings(**{"family": self.family, "path": str(folder)} | self.keys | keys))

    @property
    def call(self) -> dict:
        """What the pipeline is called with for clips of `size`."""
        frames, height, width = self.size
        return {"num_frames": frames, "height": height, "width": width, **self.called}

    @property
    def picture(self) -> np.ndarray:
        """The image to start from."""
        return self.pictures[0]

    @property
    def pictures(self) -> dict[int, np.ndarray]:
        """What the model is given, by frame of the clip."""
        draws, frames = np.random.default_rng(0), (0,) * self.image + (-1,) * self.last_image + self.keyframes
        return {frame: draws.integers(0, 256, (*self.size[1:], 3), dtype=np.uint8) for frame in frames}

    @property
    def images(self) -> dict[str, Image.Image]:
        """The same, as the pipeline is called with them."""
        names = {0: "image", -1: "last_image"}
        return {names[frame]: Image.fromarray(picture) for frame, picture in self.pictures.items()}

    def images_for(self, prompts: int) -> dict[str, object]:
        """`images` beside so many prompts."""
        if not self.conditions or not self.pictures:
            return {
                name: [image] * prompts if self.each_image else image for name, image in self.images.items()
            }
        from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

        # In the order that the family has them in, which is one of tokens: the last frame behind the others.
        frames = sorted(self.pictures, key=lambda frame: (frame == -1, frame))
        images = [[Image.fromarray(self.pictures[frame])] * prompts for frame in frames]
        numbers = [frame % self.size[0] for frame in frames]
        return {
            "conditions": [
                LTXVideoCondition(image=image, frame_index=number)
                for image, number in zip(images, numbers, strict=True)
            ]
        }

    @property
    def without(self) -> dict:
        """What the pipeline is called with for no guidance."""
        return {self.guidance: 1.0, **self.unguided}

    def guided(self, scale: float) -> dict:
        """And for guidance of that scale, with what its card has beside."""
        if scale == 1:
            return self.without
        beside = {name: self.told[name] for name in self.unguided}
        return {**beside, self.guidance: scale}

    def noise(self, family: Family, count: int = 1) -> torch.Tensor | dict[str, torch.Tensor]:
        """Noise of clips of `size`, as the family has latents."""
        shapes = family.stream_shapes(*self.size)
        drawn = {name: torch.randn(count, *shape) for name, shape in shapes.items()}
        return drawn if self.hears else drawn["video"]


# Kinds of one pipeline share the function that saves it, and so the folder of `saved`.
saver = functools.cache(functools.partial)


def told(steps: int, scale: float, shift: float | None = None, **more: float) -> dict:
    shifted = {} if shift is None else {"shift": shift}
    return {"num_inference_steps": steps, "guidance_scale": scale, **more, **shifted}


WAN = {  # card -> what it says
    "wan": told(50, 5.0, 3.0),
    "wan21_flf2v_14b": told(50, 5.5, 16.0),
    "wan22_t2v_a14b": told(40, 4.0, 12.0, guidance_scale_2=3.0),
    "wan22_i2v_a14b": told(40, 3.5, 5.0, guidance_scale_2=3.5),
    "wan22_ti2v_5b": told(50, 5.0, 5.0),
}


# The linear layers of the first blocks in the repositories that ComfyUI takes its models from.
WAN_LAYERS = (
    "blocks.0.self_attn.q blocks.0.self_attn.k blocks.0.self_attn.v blocks.0.self_attn.o "
    "blocks.0.cross_attn.q blocks.0.cross_attn.k blocks.0.cross_attn.v blocks.0.cross_attn.o "
    "blocks.0.ffn.0 blocks.0.ffn.2"
)
# Of CLIP's states.
WAN_IMAGE_LAYERS = " blocks.0.cross_attn.k_img blocks.0.cross_attn.v_img img_emb.proj.1 img_emb.proj.3"
HUNYUAN_LAYERS = (
    "double_blocks.0.img_attn_qkv double_blocks.0.img_attn_proj double_blocks.0.txt_attn_qkv "
    "double_blocks.0.txt_attn_proj double_blocks.0.img_mlp.fc1 double_blocks.0.img_mlp.fc2 "
    "double_blocks.0.txt_mlp.fc1 double_blocks.0.txt_mlp.fc2 single_blocks.0.linear1 "
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv "
    "txt_in.individual_token_refiner.blocks.0.self_attn_proj "
    "txt_in.individual_token_refiner.blocks.0.mlp.fc1 txt_in.individual_token_refiner.blocks.0.mlp.fc2"
)
LTX_LAYERS = (
    "transformer_blocks.0.attn1.to_q transformer_blocks.0.attn1.to_k transformer_blocks.0.attn1.to_v "
    "transformer_blocks.0.attn1.to_out.0 transformer_blocks.0.attn2.to_q transformer_blocks.0.attn2.to_k "
    "transformer_blocks.0.attn2.to_v transformer_blocks.0.attn2.to_out.0 "
    "transformer_blocks.0.ff.net.0.proj transformer_blocks.0.ff.net.2"
)


def wan(pipeline: str, card: str, *recipes: str, fine: bool = False, **known) -> Kind:
    """`fine`: with the VAE of Wan 2.2 5B, whose latents are half as wide and high."""
    sizes = (
        {"size": (5, 32, 64), "step": (4, 32), "tiled": ((5, 32, 416), (5, 32, 384))}
        if fine
        else {"size": (5, 32, 48), "tiled": ((5, 16, 272), (5, 16, 256))}
    )
    return Kind(
        "wan",
        saver(save_tiny, pipeline),
        recipes,
        card,
        WAN[card],
        negative="镜头切换" if card == "wan21_flf2v_14b" else "色调艳丽",
        reads=512,
        whole=("vae", "image_encoder"),
        original=WAN_LAYERS + (WAN_IMAGE_LAYERS if pipeline in ("2.1 i2v", "2.1 flf2v") else ""),
        **sizes,
        **known,
    )


def cogvideox(recipe: str, *, rotary: bool = True, image: bool = False, **saved: bool) -> Kind:
    return Kind(
        "cogvideox",
        saver(save_tiny_cogvideox, rotary=rotary, image=image, **saved),
        (recipe,),
        "cogvideox",
        told(50, 6.0),
        reads=226,
        tiled=((9, 256, 32), (9, 240, 32)),
        prediction="v",
        step=(8, 16),  # an odd number of latent frames: an even one is decoded to three frames more
        image=image,
        each_image=image,
        lay_out=lambda latents: latents.transpose(1, 2),
        lay_back=lambda held, like: held.transpose(1, 2),
    )


HUNYUAN = Kind(
    "hunyuan_video",
    save_tiny_hunyuan_video,
    ("hunyuan_video",),
    "hunyuan_video",
    told(50, 6.0, 7.0, true_cfg_scale=1.0),
    reads=77,
    tiled=((5, 16, 272), (5, 16, 256)),
    masks_text=True,
    guidance="true_cfg_scale",
    original=HUNYUAN_LAYERS,
)


def hunyuan_video_i2v(recipe: str, condition: str, **known) -> Kind:
    return replace(
        HUNYUAN,
        save=saver(save_tiny_hunyuan_video, condition=condition),
        recipes=(recipe,),
        card="hunyuan_video_i2v",
        told={"num_inference_steps": 50, "true_cfg_scale": 1.0, "shift": 7.0},  # its guidance: `called`
        image=True,
        each_image=True,
        whole=("vae",),
        **known,
    )


LTX = Kind(
    "ltx",
    save_tiny_ltx,
    ("ltx_video",),
    "ltx",
    told(50, 3.0),
    negative="worst quality",
    reads=128,
    tiled=((9, 32, 544), (9, 32, 512)),
    masks_text=True,
    size=(9, 64, 96),
    step=(8, 32),
    original=LTX_LAYERS,
    lay_out=lambda latents: latents.flatten(2).transpose(1, 2),  # one latent pixel, one token
    lay_back=lambda held, like: held.transpose(1, 2).reshape(like.shape),
)
LTX_095 = replace(
    LTX,
    save=saver(save_tiny_ltx, pipeline="LTXConditionPipeline", version="0.9.5"),
    recipes=("ltx_video_13b",),
    card="ltx_condition",
    told=told(40, 3.0),
    whole=("vae",),  # of the pictures, whose latents `prepare` makes in fp32
    conditions=True,
    draws=True,
    called={"image_cond_noise_scale": 0.0},
    lay_back=lambda held, like: held,
)
LTX2_LAYERS = " ".join(
    f"transformer_blocks.0.{layer}.{part}"
    for attention in ("attn1", "attn2", "audio_to_video_attn")
    for layer in (attention, "video_to_audio_attn" if "audio" in attention else f"audio_{attention}")
    for part in ("to_q", "to_k", "to_v", "to_out.0")
)
LTX2_LAYERS += "".join(
    f" transformer_blocks.0.{ff}.net.{n}" for ff in ("ff", "audio_ff") for n in ("0.proj", "2")
)
LTX2 = Kind(
    "ltx2",
    save_tiny_ltx2,
    ("ltx2",),
    "ltx2",
    told(
        30,
        3.0,
        stg_scale=1.0,
        modality_scale=3.0,
        guidance_rescale=0.7,
        audio_guidance_scale=7.0,
        audio_stg_scale=1.0,
        audio_modality_scale=3.0,
        audio_guidance_rescale=0.7,
    ),
    negative="blurry",
    reads=1024,
    tiled=((9, 64, 544), (9, 64, 512)),  # one latent row cannot be mirrored
    size=(9, 64, 96),
    step=(8, 32),
    keys={"frame_rate": 8},  # of the toy's clips
    called={"frame_rate": 8},
    unguided={
        "stg_scale": 0.0,
        "modality_scale": 1.0,
        "guidance_rescale": 0.0,
        "audio_guidance_scale": 1.0,
        "audio_stg_scale": 0.0,
        "audio_modality_scale": 1.0,
        "audio_guidance_rescale": 0.0,
    },
    sound=True,
    hears=True,
    draws=True,
    original=LTX2_LAYERS,
    lay_out=LTX.lay_out,
)
LTX2_ALONE = replace(
    LTX2,
    keys=LTX2.keys | {"audio": False},
    told=LTX2.told | {"modality_scale": 1.0, "audio_modality_scale": 1.0, "audio_guidance_scale": 3.0},
    hears=False,
)
HIGH, LOW = {"expert": "high_noise"}, {"expert": "low_noise"}
SECOND = {"load_into_transformer_2": True}
KINDS = {
    "wan 2.1 t2v": wan("2.1 t2v", "wan", "wan21_1.3b", "wan21_14b"),
    "wan 2.1 i2v": wan("2.1 i2v", "wan", "wan21_i2v_14b", image=True),
    "wan 2.1 flf2v": wan("2.1 flf2v", "wan21_flf2v_14b", "wan21_flf2v_14b", image=True, last_image=True),
    "wan 2.2 t2v a14b high": wan("2.2 t2v a14b", "wan22_t2v_a14b", "wan22_a14b", keys=HIGH),
    "wan 2.2 t2v a14b low": wan("2.2 t2v a14b", "wan22_t2v_a14b", "wan22_a14b", keys=LOW, loads=SECOND),
    "wan 2.2 i2v a14b high": wan("2.2 i2v a14b", "wan22_i2v_a14b", "wan22_i2v_a14b", keys=HIGH, image=True),
    "wan 2.2 i2v a14b low": wan(
        "2.2 i2v a14b", "wan22_i2v_a14b", "wan22_i2v_a14b", keys=LOW, loads=SECOND, image=True
    ),
    "wan 2.2 i2v a14b high flf2v": wan(
        "2.2 i2v a14b",
        "wan22_i2v_a14b",
        "wan22_i2v_a14b",
        keys=HIGH | {"task": "first_last_frame_to_video"},
        image=True,
        last_image=True,
    ),
    "wan 2.2 ti2v 5b t2v": wan("2.2 ti2v 5b", "wan22_ti2v_5b", "wan22_ti2v_5b", fine=True),
    "wan 2.2 ti2v 5b i2v": wan(
        "2.2 ti2v 5b",
        "wan22_ti2v_5b",
        "wan22_ti2v_5b",
        fine=True,
        keys={"task": "image_to_video"},
        image=True,
    ),
    "hunyuan_video": HUNYUAN,
    "hunyuan_video guidance 3.3": replace(HUNYUAN, keys={"guidance": 3.3}, called={"guidance_scale": 3.3}),
    "hunyuan_video i2v": hunyuan_video_i2v(
        "hunyuan_video_i2v", "token_replace", called={"guidance_scale": 6.0}
    ),
    "hunyuan_video i2v 33ch": hunyuan_video_i2v("hunyuan_video_i2v_33ch", "latent_concat", cut=1),
    "cogvideox 5b": cogvideox("cogvideox_5b", rotary=True),
    "cogvideox 2b": cogvideox("cogvideox_2b", rotary=False),
    "cogvideox 5b i2v": cogvideox("cogvideox_5b_i2v", image=True),
    "cogvideox 1.5": cogvideox("cogvideox15_5b", newer=True),
    "cogvideox 1.5 i2v": cogvideox("cogvideox15_5b_i2v", newer=True, image=True),
    "ltx": LTX,
    "ltx 8 fps": replace(LTX, keys={"frame_rate": 8}, called={"frame_rate": 8}),
    # Its VAE's decoder is told a timestep.
    "ltx 0.9.1": replace(LTX, save=saver(save_tiny_ltx, version="0.9.1")),
    "ltx i2v": replace(
        LTX,
        recipes=("ltx_video_i2v",),
        keys={"task": "image_to_video"},
        image=True,
        given=6,
        draws=True,
    ),
    # Its pipeline is another, which takes keyframes.
    "ltx 0.9.5": LTX_095,
    "ltx 0.9.5 keyframes": replace(
        LTX_095,
        recipes=("ltx_video_keyframes",),
        keys={"keyframes": [0, 3, -1]},
        image=True,
        last_image=True,
        keyframes=(3,),
        given=18,
    ),
    "ltx2": LTX2,
    "ltx2 i2v": replace(LTX2, keys=LTX2.keys | {"task": "image_to_video"}, image=True, given=6),
    "ltx2 2.3": replace(LTX2, save=saver(save_tiny_ltx2, version="2.3"), recipes=("ltx2_3",)),
    "ltx2 2.5": replace(LTX2, save=saver(save_tiny_ltx2, version="2.5"), recipes=("ltx2_5",)),
    "ltx2 alone": LTX2_ALONE,
}
FAMILIES: dict[str, Kind] = {}  # the first kind of each
for kind in KINDS.values():
    FAMILIES.setdefault(kind.family, kind)
# One kind of each pipeline, as it is without being told anything: for what no task, expert or setting changes.
PIPELINES = {name: kind for name, kind in KINDS.items() if not kind.image and (kind.hears or not kind.keys)}
