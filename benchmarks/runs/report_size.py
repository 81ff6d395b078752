"""Seconds and megabytes of a report of many 480p clips: `python -m benchmarks.runs.report_size`.

Each pair is two clips of 33 frames at 832x480, as rendered here and not as a model makes them; a copy differs from the
others in a box of its own that players pass over, so that each is encoded again. The second report finds the smaller
copies of the first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from pgdpo.checkpoints.resume import versions
from pgdpo.evaluation.evaluate import machine
from pgdpo.files.atomic import write_json
from pgdpo.report.report import write_report
from pgdpo.video import write_video

FRAMES, HEIGHT, WIDTH = 33, 480, 832
CONFIG = {
    "data": {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH},
    "model": {"family": "wan", "path": "none", "adapter": None},
    "objective": {"name": "pg_dpo", "beta": 500},
    "train": {
        "steps": 1,
        "global_batch_groups": 1,
        "learning_rate": 1e-5,
        "schedule": "constant",
        "warmup_steps": 0,
    }
    | {"precision": "bf16", "zero_stage": 0, "seed": 0},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, nargs="*", default=[20, 64, 500])
    parser.add_argument("--out", type=Path, default=Path("report_size.json"))
    run(**vars(parser.parse_args()))
    return 0


def run(pairs: list[int], out: Path) -> None:
    rows = []
    for count in pairs:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_row(Path(folder), count))
        print(rows[-1], flush=True)
        write_json(
            out, {"what": __doc__.splitlines()[0], "machine": machine(), "versions": versions(), "rows": rows}
        )


def _row(folder: Path, count: int) -> dict:
    (folder / "pairs").mkdir()
    films = {side: _film(folder / f"{side}.mp4", seed) for seed, side in enumerate(("chosen", "rejected"))}
    shown = []
    for number in range(count):
        pair = {
            "id": f"{number:04d}",
            "prompt": f"clip {number}",
            "size": [FRAMES, HEIGHT, WIDTH],
            "about": {},
        }
        for side, film in films.items():
            pair[side] = f"pairs/{number:04d}-{side}.mp4"
            mark = f"{number:08d}".encode()
            (folder / pair[side]).write_bytes(film + (8 + len(mark)).to_bytes(4, "big") + b"free" + mark)
        shown.append(pair)
    (folder / "pairs.json").write_text(json.dumps({"of": count, "pairs": shown}))
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        page = write_report(folder)
        seconds.append(round(time.perf_counter() - began, 1))
    clips = sum(file.stat().st_size for file in (folder / "pairs").iterdir())
    text = page.read_text(encoding="utf-8")
    return {
        "pairs": count,
        "MB of clips": round(clips / 1e6, 1),
        "MB of the report": round(len(text) / 1e6, 2),
        "clips on it": text.count("<video "),
        "seconds": seconds[0],
        "seconds again": seconds[1],
    }


def _film(path: Path, seed: int) -> bytes:
    """Soft blobs that drift, with some grain: about as large as a sampled clip."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), 40.0, np.float32)
    for _ in range(12):
        place, drift = rng.uniform(0, (WIDTH, HEIGHT)), rng.normal(0, 6, 2)
        colour, size = rng.uniform(0, 200, 3), rng.uniform(20, 120)
        for number, frame in enumerate(frames):
            at = place + number * drift
            frame += colour * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / size**2)[..., None]
    frames += rng.normal(0, 3, frames.shape)
    write_video(path, frames.clip(0, 255).astype(np.uint8), 16)
    return path.read_bytes()


if __name__ == "__main__":
    raise SystemExit(main())
