"""What it costs to decide that prepared data are still of what a configuration names, and to prepare them again:

    python -m benchmarks.data.prepared_record [--rows 10000]

-> results/prepared_record.json. Rows name two clips each, files of their own of 2 frames of 8x8 pixels (100 different
ones, copied): what is measured is the work per row and file, which does not grow with their size as long as no clip is
read. With larger clips, "no times known" is the time to read them all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pgdpo.config import Config
from pgdpo.config.read import load_config
from pgdpo.data.preparing.run import prepare_splits
from pgdpo.evaluation.evaluate import machine, versions
from pgdpo.files.atomic import write_json
from pgdpo.training.opening import compare_prepared
from pgdpo.video import write_video

from ..report import RESULTS

FILE = RESULTS / "prepared_record.json"
CLIPS = 100
ROUNDS = 5


def make(folder: Path, count: int) -> tuple[Config, list[dict]]:
    """A configuration, and the rows of its manifest, which is written."""
    (folder / "clips").mkdir(parents=True)
    for number in range(CLIPS):
        frames = np.random.default_rng(number).integers(0, 255, (2, 8, 8, 3), dtype=np.uint8)
        write_video(folder / f"{number}.mp4", frames, 8)
    rows = []
    for number in range(count):
        row = {"id": f"{number:05d}", "prompt": f"a circle moving {number % 500}", "weight": 1.0}
        row["scores"] = {"chosen": {"total": number / count}, "rejected": {"total": 0.5}}
        for side, shift in (("chosen", 0), ("rejected", 1 + number // CLIPS % (CLIPS - 1))):
            row[side] = f"clips/{number:05d}-{side}.mp4"
            shutil.copyfile(folder / f"{(number + shift) % CLIPS}.mp4", folder / row[side])
        rows.append(row)
    save(folder, rows)
    data = [f"data.train={folder / 'train.jsonl'}", "data.held_out=null"]
    data += ["data.num_frames=2", "data.height=8", "data.width=8", "data.buckets=[]"]
    return load_config("configs/quickstart.yaml", [f"output_dir={folder / 'out'}", *data]), rows


def save(folder: Path, rows: list[dict]) -> None:
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def seconds(do: Callable[[], object], rounds: int = 1) -> list[float]:
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        do()
        found.append(round(time.perf_counter() - started, 3))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    count = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, rows = make(folder, count)
        compare = lambda: compare_prepared(config, "train").found  # noqa: E731
        first = seconds(lambda: prepare_splits(config))
        index = folder / "out/prepared/train/index.json"
        result = {
            "rows": count,
            "clips": 2 * count,
            "index_megabytes": round(index.stat().st_size / 1e6, 1),
            "seconds": {
                "prepared for the first time": first,
                "deciding, nothing changed": seconds(compare, ROUNDS),
                "prepared again, nothing changed": seconds(lambda: prepare_splits(config)),
            },
        }
        if compare():
            raise AssertionError("nothing changed, and something was found")
        took = result["seconds"]
        rows[count // 2]["prompt"] = "another"
        save(folder, rows)
        took["deciding, one prompt edited"] = seconds(compare, ROUNDS)
        if len(compare()) != 1:
            raise AssertionError("one prompt was edited")
        rows.insert(0, rows[0] | {"id": "new", "chosen": "clips/new.mp4"})
        write_video(folder / "clips/new.mp4", np.full((2, 8, 8, 3), 128, np.uint8), 8)
        save(folder, rows)
        took["prepared again, a row in front and a prompt edited"] = seconds(lambda: prepare_splits(config))
        for path in (folder / "clips").iterdir():
            os.utime(path)
        took["deciding, no times known: every clip is read"] = seconds(compare)
    result |= {"machine": machine(), "versions": versions()}
    write_json(FILE, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
