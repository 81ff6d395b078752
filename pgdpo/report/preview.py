"""The training pairs or groups as the model receives them: decoded again from the prepared latents."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pgdpo.checkpoints.identity import rows_hash
from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.diffusion.streams import video_of
from pgdpo.files.atomic import write_json
from pgdpo.messages.console import progress_bar, say
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.encoders.decode import decode
from pgdpo.models.protocols import Encoders
from pgdpo.rows.manifest import GIVEN
from pgdpo.rows.ranked import drawn
from pgdpo.rows.schema import MANIFEST, SAMPLES, captions_of, scores_of, sides_of, worded
from pgdpo.training.opening import open_pairs
from pgdpo.video import Sound, write_video

SMALL, LARGE = (
    192,
    320,
)  # pixels of the shorter side: smaller clips are enlarged by whole factors, larger ones shrunk
SHOWN = ("weight", "probability", "reward_margin", "segment_labels", "source", MANIFEST)


def write_preview(config: Config, out: Path, *, trained_on: dict | None = None) -> None:
    """`pairs.json` and `pairs/` in the folder `out`: the first `evaluate.report_pairs` rows that training visits.

    They are what is left after `data.select`, buckets, crops and the VAE. `trained_on`: the identity of a run
    that was trained: pairs of other files or rows, or none, are said and not shown.
    """
    try:
        data = open_pairs(config, "train", compare=trained_on is None)
        if trained_on is not None and not _is_of(data, trained_on):
            raise InputError(f"{data.folder}: was prepared anew since, from other data")
        data = open_pairs(config, "train", compare=False, whole=True)
    except InputError as error:
        if trained_on is None:
            raise
        say(f": {error}", first="the pairs that this run was trained on are not shown")
        shutil.rmtree(out / "pairs", ignore_errors=True)
        (out / "pairs.json").unlink(missing_ok=True)
        return
    folder, index = out / "pairs", out / "pairs.json"
    count = min(config.evaluate.report_pairs, len(data))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = open_family(config.model).load_encoders(device)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pairs = []
    with progress_bar("show pairs", total=count) as bar:
        for number in range(count):
            item, stem = data[number, 0], f"pairs/{number:03d}"
            pair, clips = _shown(item, stem)
            for key, picture in _given(item, decoder, data.index.get("pictures", ())).items():
                Image.fromarray(picture).save(out / f"{stem}-{key}.png")
                pair.setdefault("pictures", {})[key] = f"{stem}-{key}.png"
            for side, latents in clips.items():
                frames, sound = decode(decoder, latents)
                pair["size"] = list(frames.shape[:3])
                _write(out / pair[side], frames, config.evaluate.fps or len(frames) / pair["seconds"], sound)
            pairs.append(pair)
            bar.advance()
    about = {"data": data.fingerprint, "of": len(data), "kind": data.kind, "sized": data.sized}
    write_json(index, about | {"pairs": pairs})


def _shown(item: dict, stem: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """(a row as `pairs.json` has it, its clips' latents)."""
    row = item["row"]
    sides = sides_of(row)
    about = {key: row[key] for key in SHOWN if key in row}
    about |= {f"scores of {worded(side)}": scores_of(row, side) for side in sides}
    about |= {f"caption of {worded(side)}": caption for side, caption in captions_of(row).items()}
    pair = {
        "id": row["id"],
        "prompt": row["prompt"],
        "seconds": row["span"][1] - row["span"][0],
        "about": {key: value for key, value in about.items() if value not in (None, {})},
        **{side: f"{stem}-{side}.mp4" for side in sides},
        **({"names": drawn(row)} if SAMPLES in row else {}),
    }
    return pair, dict(zip(sides, item["samples"], strict=True))


def _given(item: dict, decoder: Encoders, wanted: Collection[int]) -> dict[str, np.ndarray]:
    """The pictures that the model is given with a row, under the keys that would name them: decoded, where they are
    latents of the clips' kind, as one picture or as a clip that begins and ends with them."""
    latents, clip = item["conditioning"].get("image_latents"), video_of(item["samples"][0])
    if latents is None or latents.ndim != clip.ndim or latents[:, 0].shape != clip[:, 0].shape:
        return {}
    frames = decoder.decode_images(latents)
    return {
        GIVEN[frame]: frames[frame] for frame in wanted if frame == 0 or (frame == -1 and len(frames) > 1)
    }


def _is_of(data: PreparedPairs, identity: dict) -> bool:
    """Whether prepared pairs are those of a run; one of an earlier version knows the files alone."""
    rows = identity.get("rows_hash")
    return identity["data_hash"] == data.fingerprint and rows in (None, rows_hash(data))


def _write(path: Path, frames: np.ndarray, fps: float, sound: Sound | None) -> None:
    scale = max(1, SMALL // min(frames.shape[1:3]))
    write_video(path, frames, fps, scale=scale, short=LARGE, sound=sound)
