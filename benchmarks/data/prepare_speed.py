"""Frames a second of `prepare`, against plain PyAV decoding of the same clips, in one run:

    python -m benchmarks.data.prepare_speed [--pairs 8] [--rounds 5] [--before CHECKOUT]

-> results/prepare_speed.json. H.264 clips of 81 frames of 480x832 pixels, as `write_video` writes them. `decode` is
PyAV's own loop with its threads, `decode to RGB` also makes an array of each frame. `read` looks at a clip and reads
its frames at full size, as `prepare` does. `prepare` is the whole command's work on new pairs: hashes, looks, decoding,
scaling to 64x112, the toy's patch codec (which loses nothing and is nearly free), shards with their hashes. The ways
take turns.

`--before`: a checkout of an earlier commit. In place of all that, its `prepare` and this one's take turns on the same
clips, in a process each, in clips a second -> results/prepare_beside.json: by the toy's codec, where decoding is nearly
all there is, and behind it a VAE that takes `VAE` seconds a clip and no CPU, as one on a GPU does (it sleeps). CPU
timings all: no GPU was used. Both must write the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import av
import numpy as np

from pgdpo.config.read import load_config
from pgdpo.data.preparing.prepare import prepare
from pgdpo.evaluation.evaluate import machine, versions
from pgdpo.files.atomic import sha256_of, write_json
from pgdpo.models import open_family
from pgdpo.video import probe_video, read_frames, write_video

from ..report import RESULTS

FILE, BESIDE = RESULTS / "prepare_speed.json", RESULTS / "prepare_beside.json"
FRAMES, HEIGHT, WIDTH, FPS = 81, 480, 832, 16
VAE = 0.4
# Prepares once for each line that it reads, a VAE's seconds a clip, and says how many seconds that took.
PREPARER = """
import json, shutil, sys, time
from pgdpo.models import open_family
try:
    from pgdpo.config.read import load_config
    from pgdpo.data.preparing.prepare import prepare
except ModuleNotFoundError:  # a commit from before these were rooms
    from pgdpo.config import load_config
    from pgdpo.data.prepare import prepare
config = load_config("configs/quickstart.yaml", json.loads(sys.argv[1]))
family = open_family(config.model)
encoders = family.load_encoders("cpu")
encode = encoders.encode_video
for line in sys.stdin:
    vae = float(line)
    encoders.encode_video = lambda frames: time.sleep(vae) or encode(frames)
    shutil.rmtree(config.output_dir, ignore_errors=True)
    started = time.perf_counter()
    prepare(config.prepared_dir / "train", config.data, family, encoders)
    print("took", time.perf_counter() - started, flush=True)
"""


def make(folder: Path, pairs: int) -> None:
    """Clips of blocks that drift over one another, and their manifest."""
    rows = []
    for number in range(pairs):
        row = {"id": str(number), "prompt": "x"}
        for side in ("chosen", "rejected"):
            rng = np.random.default_rng([number, len(side)])
            scene = (
                rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            )
            frames = np.stack([np.roll(scene, (2 * n, 3 * n), (0, 1)) for n in range(FRAMES)])
            row[side] = f"{number}-{side}.mp4"
            write_video(folder / row[side], frames, FPS, crf=23)
        rows.append(row)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def decode(files: list[Path], *, rgb: bool) -> None:
    for file in files:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                if rgb:
                    frame.to_ndarray(format="rgb24")


def read(files: list[Path]) -> None:
    for file in files:
        read_frames(probe_video(file), range(FRAMES), (HEIGHT, WIDTH))


def settings(folder: Path, out: str) -> list[str]:
    data = [f"data.train={folder / 'rows.jsonl'}", "data.held_out=null", f"data.num_frames={FRAMES}"]
    data += [
        f"data.fps={FPS}",
        "data.height=64",
        "data.width=112",
        "data.buckets=[]",
        "data.pairs_per_shard=4",
    ]
    return [f"output_dir={folder / out}", *data]


def prepared(folder: Path) -> Callable[[], None]:
    config = load_config("configs/quickstart.yaml", settings(folder, "out"))
    family = open_family(config.model)
    encoders = family.load_encoders("cpu")

    def run() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        prepare(config.prepared_dir / "train", config.data, family, encoders)

    return run


class Preparer:
    """A process that prepares with the code of a checkout."""

    def __init__(self, checkout: Path, folder: Path, out: str) -> None:
        path = os.pathsep.join([str(checkout), str(checkout / "kernels")])
        command = [sys.executable, "-c", PREPARER, json.dumps(settings(folder, out))]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
            cwd=checkout,
        )

    def seconds(self, vae: float) -> float:
        self.process.stdin.write(f"{vae}\n")
        self.process.stdin.flush()
        return next(float(line.split()[1]) for line in self.process.stdout if line.startswith("took "))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def beside_before(folder: Path, before: Path, rounds: int) -> dict:
    """Clips a second of both commits' `prepare`, in turn, and the medians of their ratios."""
    clips = len([*folder.glob("*.mp4")])
    ways = {"before": Preparer(before, folder, "before"), "after": Preparer(Path.cwd(), folder, "after")}
    result = {}
    for name, vae in (("decoding alone", 0.0), (f"a VAE of {VAE} s a clip", VAE)):
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, preparer in ways.items():
                rate = round(clips / preparer.seconds(vae), 3)
                if number:  # the first one imports and compiles
                    rates[way].append(rate)
        ratio = median(new / old for new, old in zip(rates["after"], rates["before"], strict=True))
        result[name] = {"clips_per_second": rates, "median_ratio": round(ratio, 3)}
    for preparer in ways.values():
        preparer.close()
    a, b = (
        [(file.name, sha256_of(file)) for file in sorted((folder / way).rglob("*.safetensors"))]
        for way in ways
    )
    assert a == b and a, "the commits prepare other bytes"
    return result


def about() -> dict:
    return {
        "clips": {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "codec": "h264"},
        "cores": os.cpu_count(),
        "machine": machine(),
        "versions": {**versions(), "av": av.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--before", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, asked.pairs)
        if asked.before:
            against = beside_before(folder, asked.before, asked.rounds)
            told = {**against, "pairs": asked.pairs, "load_average": os.getloadavg()[0], **about()}
            write_json(BESIDE, told)
            print(json.dumps(against, indent=2))
            return
        files = sorted(folder.glob("*.mp4"))
        ways = {
            "decode": lambda: decode(files, rgb=False),
            "decode to RGB": lambda: decode(files, rgb=True),
            "read": lambda: read(files),
            "prepare": prepared(folder),
        }
        ways["prepare"]()  # what is imported and compiled once
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(asked.rounds):
            for way, run in ways.items():
                started = time.perf_counter()
                run()
                seconds[way].append(time.perf_counter() - started)
    count = len(files) * FRAMES
    rates = {way: [round(count / each, 1) for each in found] for way, found in seconds.items()}
    ratios = {
        f"{way} / {plain}": round(median(a / b for a, b in zip(rates[way], rates[plain], strict=True)), 3)
        for way, plain in (("read", "decode to RGB"), ("prepare", "decode"), ("prepare", "decode to RGB"))
    }
    result = {
        "files": len(files),
        "frames_per_second": rates,
        "median_ratios": ratios,
        **about(),
    }
    write_json(FILE, result)
    print(json.dumps({"frames_per_second": rates, **ratios}, indent=2))


if __name__ == "__main__":
    main()
