"""What tiles change: latents and frames of each family's VAE in tiles against whole, their time, and the memory of
whole ones as planned (`pgdpo/models/encoders/tiling.py`) and as measured:

    python -m benchmarks.data.vae_tiling [--out FILE]

-> results/vae_tiling.json, after each model. The published architectures with random weights (trained ones differ by
another share), fp32, one clip that moves smoothly: of the size that the model makes on a GPU, on a CPU of one that
takes minutes, larger than a tile. Memory: of a GPU torch's peak, else the process's. Relative difference: the norm of
what differs over the norm of what is whole.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pgdpo.config import family_class
from pgdpo.models.encoders.pipeline import PipelineEncoders
from pgdpo.planning.published import published

from ..report import RESULTS, machine, write

FILE = RESULTS / "vae_tiling.json"
CASES = {  # model -> (family, size on a GPU, on a CPU)
    "Lightricks/LTX-Video": ("ltx", (81, 480, 832), (9, 480, 832)),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("wan", (81, 480, 832), (1, 480, 832)),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": ("wan", (81, 480, 832), (1, 320, 512)),
    "zai-org/CogVideoX-5b": ("cogvideox", (49, 480, 720), (1, 288, 384)),
    "hunyuanvideo-community/HunyuanVideo": ("hunyuan_video", (81, 480, 832), (1, 288, 288)),
}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def smooth_clip(size: tuple[int, int, int], channels: int = 3) -> torch.Tensor:
    """`[1, C, F, H, W]` in [-1, 1]: blurred noise, as a picture has more of the large than of the small."""
    torch.manual_seed(1)
    clip = torch.zeros(1, channels, *size)
    for cells in (4, 16, 64):
        coarse = torch.randn(1, channels, 2, cells, cells) / math.log2(cells)
        clip += torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")
    return clip.tanh().to(DEVICE)


def measured(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float, float]:
    """(what it gives, seconds, the process's or the GPU's peak bytes since)."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = _status("VmRSS"), time.perf_counter()
    with torch.no_grad():
        result = run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return result, time.perf_counter() - started, torch.cuda.max_memory_allocated()
    return result, time.perf_counter() - started, _status("VmHWM") - before


def _status(key: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def compare(encoders: PipelineEncoders, size: tuple[int, int, int]) -> dict:
    """One VAE both ways, encoding and decoding."""
    family, found = encoders.family, {"size": "x".join(map(str, size))}
    torch.manual_seed(0)
    vae = family.vae_class.from_config(dict(family.meta_vae.config)).to(DEVICE).eval()
    weights = sum(parameter.nbytes for parameter in vae.parameters())
    given = smooth_clip(size)
    for way, run in (("encoded", encoders.encode), ("decoded", encoders.decode)):
        vae.disable_tiling()
        whole, seconds, peak = measured(lambda run=run, given=given: run(vae, given))
        vae.enable_tiling()
        tiles, slower, less = measured(lambda run=run, given=given: run(vae, given))
        if DEVICE.type == "cpu":  # the weights were there before
            peak, less = peak + weights, less + weights
        found[way] = {
            "relative_difference": round(((tiles - whole).norm() / whole.norm()).item(), 5),
            "largest_difference": round((tiles - whole).abs().max().item() / whole.std().item(), 3),
            "seconds": {"whole": round(seconds, 2), "tiled": round(slower, 2)},
            "planned_bytes": encoders.tiling.whole_bytes(size, way),
            "peak_bytes": {"whole": peak, "tiled": less},
        }
        given = whole
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FILE)
    out = parser.parse_args().out
    about = {"machine": machine(), "largest_difference": "in standard deviations of what is whole"}
    found: dict[str, dict] = {}
    for path, (family, *sizes) in CASES.items():
        encoders = published(family_class(family).settings(family=family, path=path)).load_encoders(DEVICE)
        found[path] = compare(encoders, sizes[DEVICE.type == "cpu"])
        print(path, found[path], flush=True)
        write({**about, "models": found}, "vae_tiling", out)


if __name__ == "__main__":
    main()
