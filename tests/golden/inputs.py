"""What the golden runs start from, made once and committed: clips, manifest, weights.

    python -m tests.golden.inputs

Nothing in them depends on a library's version. The clips are of the size that the runs train on, and each frame is a
PNG, lossless and RGB, inside an MP4: a decoder can give no other pixels, and nothing is scaled or converted. (H.264
clips would be turned from YUV to RGB by FFmpeg's scaler, whose last bits depend on version and processor.) The
weights are in a file and not drawn, since torch's normal numbers depend on the vector instructions; they are stored
in bfloat16, for size, and trained in fp32.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

ASSETS = Path(__file__).parent.parent / "assets" / "golden"
INPUTS = ASSETS / "inputs"
CONFIG, MANIFEST, MODEL = INPUTS / "config.yaml", INPUTS / "pairs.jsonl", INPUTS / "model"
PAIRS, NUM_FRAMES, SIDE, FPS = 6, 4, 16, 8


def make() -> None:
    """Write all inputs anew; equal versions of the libraries give equal files."""
    (INPUTS / "clips").mkdir(parents=True, exist_ok=True)
    _make_clips()
    _make_model()


def pixels_sha256() -> str:
    """Of all clips as pgdpo decodes them, to tell whether it was they that moved a loss."""
    from pgdpo.video import read_video

    digest = hashlib.sha256()
    for row in map(json.loads, MANIFEST.read_text(encoding="utf-8").splitlines()):
        for side in ("chosen", "rejected"):
            frames = read_video(INPUTS / row[side], num_frames=NUM_FRAMES, size=(SIDE, SIDE))
            digest.update(frames.tobytes())
    return digest.hexdigest()


def _make_clips() -> None:
    from pgdpo.toy.clips import example, render

    rows = []
    for index in range(PAIRS):
        pair = example(0, index, split="train", num_frames=NUM_FRAMES)
        row = {"id": f"golden-{index}", "prompt": pair.prompt}
        for side in ("chosen", "rejected"):
            row[side] = f"clips/{index}-{side}.mp4"
            _write_lossless(INPUTS / row[side], render(getattr(pair, side), SIDE))
        rows.append(json.dumps(row) + "\n")
    MANIFEST.write_text("".join(rows), encoding="utf-8")


def _write_lossless(path: Path, frames: np.ndarray) -> None:
    """`frames`: uint8 RGB [F, H, W, 3]."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("png", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())


def _make_model() -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from tests.worlds import save_tiny_wan

    (weights,) = (save_tiny_wan(MODEL) / "transformer").glob("*.safetensors")
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


if __name__ == "__main__":
    make()
