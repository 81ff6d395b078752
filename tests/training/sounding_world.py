"""A world of clips with sound for tests: a tiny LTX-2 pipeline, moving squares with a tone, some of them silent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pgdpo.video import Sound, write_video
from tests.models.tiny_ltx2 import save_tiny_ltx2
from tests.worlds import write_config

FPS, FRAMES, SIZE = 24, 9, 64  # latents of 2 x 2 x 2, the smallest that the VAE decodes


def clip(path: Path, seed: int, *, sounds: bool) -> Path:
    """A bright square on grey, its place and its tone by the seed."""
    rng = np.random.default_rng(seed)
    frames = np.full((FRAMES, SIZE, SIZE, 3), 90, np.uint8)
    top, left = rng.integers(0, SIZE // 2, 2)
    for number, frame in enumerate(frames):
        frame[top : top + 12, left + number // 2 : left + 12 + number // 2] = rng.integers(150, 255, 3)
    t = np.arange(16000) / 16000
    tone = 0.5 * np.sin(2 * np.pi * rng.uniform(200, 2000) * t).astype(np.float32)
    write_video(path, frames, FPS, sound=Sound(np.stack([tone, tone]), 16000) if sounds else None)
    return path


def write_rows(folder: Path, split: str, rows: list[dict]) -> Path:
    """`split`.jsonl of rows that have `id` and what else they say; `mute: True` of one makes its clips silent."""
    found = []
    for number, row in enumerate(rows):
        mute = row.pop("mute", False)
        for place, side in enumerate(("chosen", "rejected")):
            name = f"{split}-{row['id']}-{side}.mp4"
            row[side] = name
            clip(folder / name, 1000 * (split == "train") + 2 * number + place, sounds=not mute)
        found.append({"prompt": "a red circle moving left", **row})
    path = folder / f"{split}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def sounding_world(folder: Path, train: list[dict], held_out: list[dict], **sections) -> Path:
    """The configuration of a tiny LTX-2 on these rows, all of its parts of their real classes."""
    save_tiny_ltx2(folder / "model")
    data = {
        "train": str(write_rows(folder, "train", train)),
        "held_out": str(write_rows(folder, "held_out", held_out)),
        "num_frames": FRAMES,
        "height": SIZE,
        "width": SIZE,
    }
    return write_config(
        folder / "config.yaml",
        folder / "out",
        folder / "model",
        data=data,
        model={"family": "ltx2", "encoders": "pipeline"},
        evaluate={"reward": None, "num_prompts": 1, "every": 2, "every_prompts": 0, "fps": None},
        **sections,
    )
