"""What tests do to manifests, clips and encoders after `prepare`, in the working folder (fixture `changed_world`)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgdpo.messages.errors import InputError
from pgdpo.video import write_video
from tests.worlds import run_pgdpo

SPLITS = ("train", "held_out")
PROMPTS = ("a red circle moving left", "a blue star moving up", "a green ring")


def clip(path, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 4, 4, 3), dtype=np.uint8)
    write_video(path, pixels, 8, scale=4)


def rows_of(split):
    rows = []
    for number in range(5):
        name = f"{split}-{number}"
        row = {"id": name, "prompt": PROMPTS[number % 3], "licence": "CC0-1.0", "scores": {}}
        row |= {side: f"clips/{name}-{side}.mp4" for side in ("chosen", "rejected")}
        row |= {"weight": 1.0, "segments": [{"start": 0, "end": 1, "preference": 1}]}
        row["scores"] = {side: {"total": float(number)} for side in ("chosen", "rejected")}
        if number < 2:
            row["mask"] = f"clips/{name}-mask.png"
        rows.append(row)
    rows[4]["preference"] = 0.5  # a tie, which data.ties leaves out
    return rows


def save(split, rows, name=None):
    with open(f"data/{name or split}.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def edit(change):
    """`change(rows, split)` both manifests."""
    for split in SPLITS:
        with open(f"data/{split}.jsonl") as file:
            rows = [json.loads(line) for line in file]
        save(split, change(rows, split) or rows)


def edited(number, **keys):
    return lambda: edit(lambda rows, _: rows[number].update(keys))


def swap():
    def change(rows, _):
        rows[1]["chosen"], rows[1]["rejected"] = rows[1]["rejected"], rows[1]["chosen"]

    edit(change)


def insert(place=1):
    def change(rows, split):
        clip(f"data/clips/{split}-new-chosen.mp4", 90)
        clip(f"data/clips/{split}-new-rejected.mp4", 91)
        new = {side: f"clips/{split}-new-{side}.mp4" for side in ("chosen", "rejected")}
        rows.insert(place, {**rows[2], **new, "id": f"{split}-new"})

    edit(change)


def replace(what, seed=77):
    def change():
        for split in SPLITS:
            path = f"data/clips/{split}-{what}"
            if path.endswith(".png"):
                Image.fromarray(np.full((16, 16), 255, np.uint8)).save(path)
            else:
                clip(path, seed)

    return change


def rename(rows, split):
    clip(f"data/clips/{split}-other.mp4", 88)
    rows[3]["rejected"] = f"clips/{split}-other.mp4"


def add_mask(rows, split):
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(f"data/clips/{split}-added.png")
    rows[2]["mask"] = f"clips/{split}-added.png"


def other_manifest():
    for split in SPLITS:
        rows = rows_of(split)
        rows[2]["prompt"] = "a star"
        save(split, rows, f"{split}-b")


def flip_weights(part):
    def change():
        (path,) = Path("model", part).glob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[-3] ^= 0b10
        path.write_bytes(content)

    return change


def other_tokenizer():
    path = Path("model/tokenizer/tokenizer.json")
    path.write_text(path.read_text() + "\n")


def outside():
    os.rename("data/clips", "clips")
    edit(
        lambda rows, _: [
            {**row, **{k: f"../{v}" for k, v in row.items() if str(v).startswith("clips/")}} for row in rows
        ]
    )


def refused(*arguments) -> str:
    with pytest.raises(InputError) as caught:
        run_pgdpo(*arguments)
    return str(caught.value)


def stale_differences(config):
    from pgdpo.config.read import load_config
    from pgdpo.training.opening import compare_prepared

    return compare_prepared(load_config(config, []), "train").found
