"""Models that a refusal is about: tiny pipelines of each family, changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable

from tests.checking.broken_inputs import write_clips
from tests.models.families import KINDS
from tests.refusals.making import Place, good_row, pipeline, rows


def of(name: str, *overrides: str, **changes: dict) -> Callable[[Place], list[str]]:
    """A kind of `KINDS`, without its keys, with `changes` to its parts."""
    return lambda place: [
        *pipeline(place.model(KINDS[name].save, **changes)),
        f"model.family={KINDS[name].family}",
        *overrides,
    ]


def deaf_to_masks(place: Place) -> list[str]:
    """A backend that lets its mask lie."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    backends, name = _AttentionBackendRegistry._backends, AttentionBackendName._NATIVE_MATH
    math = backends[name]
    place.patch.setitem(backends, name, lambda *, attn_mask=None, **inputs: math(**inputs))
    return of("hunyuan_video", "model.attention=_native_math", "train.micro_batch_groups=2")(place)


def own_caption(place: Place) -> list[str]:
    """Of a rejected clip, for a model whose text encoder reads prompts with pictures."""
    write_clips(place.folder / "clips")
    own = rows(place, [good_row("0") | {"caption_rejected": "a blue dot"}, good_row("1")])
    return [*own, *of("hunyuan_video i2v", "data.num_frames=5", "data.fps=own")(place)]


def checkpoint(place: Place) -> list[str]:
    """A single file, as ComfyUI has them."""
    (place.folder / "wan.safetensors").touch()
    return [f"model.path={place.folder}/wan.safetensors"]


def without(place: Place, part: str, name: str = "wan 2.1 t2v") -> list[str]:
    folder = place.model(KINDS[name].save)
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    return pipeline(folder)
