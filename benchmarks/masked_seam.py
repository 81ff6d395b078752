"""The seam around the box that `make masked` makes anew, pasted at every step and pasted after the last one:

    python -m benchmarks.masked_seam [--clips 64]

-> results/masked_seam.json. The toy's fitted base model on the toy's chosen clips. The seam: mean |difference| of
pixels that touch across the border, over that of pixels that touch inside the box. The real clip has its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from pgdpo.config import load_config
from pgdpo.data.files import write_json
from pgdpo.data.toy import render_dataset
from pgdpo.data.video import read_video
from pgdpo.evaluation.evaluate import machine, versions
from pgdpo.making.generate import Generator
from pgdpo.models.toy import PATCH

from .report import RESULTS

FILE = RESULTS / "masked_seam.json"
SIGMAS = (0.5, 0.65, 0.8)  # as make.renoise draws them


def differences(clip: np.ndarray, box: tuple[slice, slice]) -> tuple[float, float]:
    """(across the box's border, inside it): mean |difference| of neighbouring pixels."""
    inside = np.zeros(clip.shape[1:3], int)
    inside[tuple(slice(side.start * PATCH, side.stop * PATCH) for side in box)] = 1
    across, within = [], []
    for axis in (0, 1):
        steps = np.abs(np.diff(clip.astype(float), axis=axis + 1)).mean(axis=(0, 3))
        both = inside + np.roll(inside, -1, axis)
        both = both[:-1] if axis == 0 else both[:, :-1]
        across += steps[both == 1].tolist()
        within += steps[both == 2].tolist()
    return mean(across), mean(within)


def seams(clips: int) -> dict:
    """Way -> its seam at each of `SIGMAS`, summed over clips before the quotient is taken."""
    with tempfile.TemporaryDirectory() as folder:
        config = load_config("configs/quickstart.yaml", [f"output_dir={folder}"])
        render_dataset(Path(folder), train_pairs=clips, held_out_pairs=1, seed=0)
        rows = [json.loads(line) for line in (Path(folder) / "train.jsonl").read_text().splitlines()]
        size = (config.data.height, config.data.width)
        frames = {
            row["id"]: read_video(Path(folder) / row["chosen"], num_frames=config.data.num_frames, size=size)
            for row in rows
        }
    model = Generator(config, [row["prompt"] for row in rows], torch.device("cpu"))
    rng = np.random.default_rng(0)
    found: dict = {}
    for sigma in SIGMAS:
        sums: dict[str, np.ndarray] = {}
        for row in rows:
            clip, start = frames[row["id"]], rng.integers(1, 3, 2)
            box = tuple(slice(int(n), int(n) + 3) for n in start)  # of 6 x 6 latents
            each = model.inside(row["id"], clip, row["prompt"], sigma, 0, box)
            free = model.encoders.encode_video(model.from_clip(row["id"], clip, row["prompt"], sigma, 0))
            after = model.encoders.encode_video(clip)
            after[(..., *box)] = free[(..., *box)]
            ways = {
                "real": clip,
                "after the last step": model.encoders.decode_video(after),
                "at every step": each,
            }
            for way, made in ways.items():
                sums[way] = sums.get(way, 0) + np.array(differences(made, box))
        for way, (across, within) in sums.items():
            found.setdefault(way, {})[str(sigma)] = {
                "seam": across / within,
                "across": across / clips,
                "inside": within / clips,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=64)
    clips = parser.parse_args().clips
    found = seams(clips)
    write_json(FILE, {"clips": clips, "seams": found, "machine": machine(), "versions": versions()})
    for way, by_sigma in found.items():
        print(way, {sigma: f"{row['seam']:.2f} ({row['across']:.1f})" for sigma, row in by_sigma.items()})


if __name__ == "__main__":
    main()
