"""What tiles change: latents and frames of each family's VAE in tiles against whole, their time, and the memory of
whole ones as planned (`pgdpo/models/tiling.py`) and as measured:

    python -m benchmarks.vae_tiling

-> results/vae_tiling.json. The published architectures, with random weights (a trained VAE differs less or more), fp32, one
clip of a few frames at 480x832 that moves smoothly; on a GPU the memory is torch's peak, else the process's. A relative
difference is the norm of what differs over the norm of what is whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pgdpo.data.buckets import size_name
from pgdpo.data.files import write_json
from pgdpo.evaluation.evaluate import machine, versions
from pgdpo.models.encoders import PipelineEncoders
from pgdpo.planning.published import published
from pgdpo.settings import ModelConfig

from .report import RESULTS

FILE = RESULTS / "vae_tiling.json"
CASES = {  # model -> (family, frames)
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": ("wan", 5),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": ("wan", 5),
    "hunyuanvideo-community/HunyuanVideo": ("hunyuan_video", 5),
    "zai-org/CogVideoX-5b": ("cogvideox", 9),
    "Lightricks/LTX-Video": ("ltx", 9),
}
HEIGHT, WIDTH = 480, 832
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
    family, found = encoders.family, {"size": size_name(size)}
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
    found = {}
    for path, (family, frames) in CASES.items():
        encoders = published(ModelConfig(family=family, path=path)).load_encoders(DEVICE)
        found[path] = compare(encoders, (frames, HEIGHT, WIDTH))
        print(path, found[path], flush=True)
    write_json(
        FILE,
        {
            "machine": machine(),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "largest_difference": "in standard deviations of what is whole",
            "models": found,
        },
    )


if __name__ == "__main__":
    main()
