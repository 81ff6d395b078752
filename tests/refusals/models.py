"""Models that a refusal is about: tiny pipelines of each family, changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.models.tiny_pipelines import save_tiny_cogvideox, save_tiny_hunyuan_video, save_tiny_ltx
from tests.models.tiny_wan import save_tiny
from tests.refusals.making import Place, pipeline


def hunyuan_video(*overrides: str) -> Callable[[Place], list[str]]:
    return lambda place: [
        *pipeline(place.model(save_tiny_hunyuan_video)),
        "model.family=hunyuan_video",
        *overrides,
    ]


def deaf_to_masks(place: Place) -> list[str]:
    """A backend that lets its mask lie."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    backends, name = _AttentionBackendRegistry._backends, AttentionBackendName._NATIVE_MATH
    math = backends[name]
    place.patch.setitem(backends, name, lambda *, attn_mask=None, **inputs: math(**inputs))
    return hunyuan_video("model.attention=_native_math", "train.micro_batch_pairs=2")(place)


def hunyuan_image(place: Place) -> list[str]:
    folder = place.model(save_tiny_hunyuan_video, transformer={"image_condition_type": "latent_concat"})
    return [*pipeline(folder), "model.family=hunyuan_video"]


def without(place: Place, part: str, kind: str = "2.1 t2v") -> list[str]:
    folder = place.model(save_tiny, kind)
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    return pipeline(folder)


def ltx(*overrides: str) -> Callable[[Place], list[str]]:
    return lambda place: [*pipeline(place.model(save_tiny_ltx)), "model.family=ltx", *overrides]


def wan(kind: str, *overrides: str, **changes: dict) -> Callable[[Place], list[str]]:
    return lambda place: [*pipeline(place.model(save_tiny, kind, **changes)), *overrides]


def cogvideox(*overrides: str, **changes: dict) -> Callable[[Place], list[str]]:
    return lambda place: [
        *pipeline(place.model(small_cogvideox, **changes)),
        "model.family=cogvideox",
        *overrides,
    ]


def small_cogvideox(folder: Path) -> Path:
    return save_tiny_cogvideox(folder, rotary=False)
