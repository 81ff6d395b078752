"""Models that a refusal is about: tiny pipelines of each family, changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import numpy as np

from pgdpo.config.read import load_config
from pgdpo.video import write_video
from tests.checking.broken_inputs import write_clips
from tests.models.families import KINDS
from tests.refusals.making import Place, good_row, pipeline, rows
from tests.worlds import run_pgdpo


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


def silent(*overrides: str, heard: tuple[bool, bool]) -> Callable[[Place], list[str]]:
    """Two rows prepared for LTX-2, of which the index says whether their clips have sound."""

    def build(place: Place) -> list[str]:
        (place.folder / "clips").mkdir()
        for name in ("0a", "0b"):
            write_video(place.folder / f"clips/{name}.mp4", np.full((9, 64, 64, 3), 100, np.uint8), 24)
        told = "data.num_frames=9", "data.height=64", "data.width=64", "evaluate.fps=null"
        own = [*rows(place, [good_row("0"), good_row("1")]), *of("ltx2", *told)(place)]
        run_pgdpo("prepare", place.config, *own)
        file = load_config(place.config, own).prepared_folder("train") / "index.json"
        index = json.loads(file.read_text())
        for row, sounds in zip(index["pairs"], heard, strict=True):
            row["sound"] = sounds
        file.write_text(json.dumps(index))
        return [*own, *overrides]

    return build


def one_step(place: Place) -> list[str]:
    """Of a scheduler that stretches its levels to a last one."""
    own = silent("evaluate.every=1", "evaluate.sampling_steps=1", heard=(False, False))(place)
    own.append(f"data.held_out={place.folder}/rows.jsonl")
    run_pgdpo("prepare", place.config, *own)
    return own


def checkpoint(place: Place) -> list[str]:
    """A single file, as ComfyUI has them."""
    (place.folder / "wan.safetensors").touch()
    return [f"model.path={place.folder}/wan.safetensors"]


def without(place: Place, part: str, name: str = "wan 2.1 t2v") -> list[str]:
    folder = place.model(KINDS[name].save)
    shutil.rmtree(folder / part) if (folder / part).is_dir() else (folder / part).unlink()
    return pipeline(folder)
