"""Whether a VAE takes clips whole, as the models' pipelines do, or in tiles, which are blended where they overlap.

Tiles need a fraction of the memory and more time, and give other latents: each is normalised and padded by itself. So
they are for clips that don't fit otherwise. (Of diffusers' examples those for HunyuanVideo alone enable tiling; what it
gives is no more that model's own than it is another's. In time HunyuanVideo's VAE tiles and CogVideoX's and Wan's go on
from chunk to chunk either way.)
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from pgdpo.messages.console import say
from pgdpo.models.encoders.alive import Alive

Size = tuple[int, int, int]  # frames, height, width in pixels
Way = Literal["encoded", "decoded"]

# What convolutions need beside the tensors that are counted: cuDNN's workspace, on the CPU copies in its own layout. An
# H100 took 1.07 (encoding) and 1.14 times (decoding) what is counted for Wan's at 81 x 480 x 832.
BESIDE = {"cuda": 1.25, "cpu": 1.5}


class TiledEncoders(Protocol):
    """What is asked of the encoders whose VAE may cut clips: `pipeline.PipelineEncoders`."""

    family: Any  # a VaeFamily
    device: torch.device

    def largest_tile(self, way: Way) -> tuple[int, int]: ...

    def load_beside(self, way: Way) -> None: ...

    def encode(self, vae: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor: ...

    def decode(self, vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor: ...


class Tiling:
    """Which sizes of clips go through one pipeline's VAE in tiles: decided once, when it is first asked.

    `model.vae_tiling` decides, or under `auto` the memory that `device` has free at that moment. Raises OSError where
    the VAE's configuration can't be read.
    """

    def __init__(self, encoders: TiledEncoders) -> None:
        self._encoders = weakref.proxy(encoders)  # whose VAE is to go with the last name for it
        self.asked = encoders.family.model.vae_tiling
        self._decided: dict[tuple[Way, Size], bool] = {}

    def cuts(self, size: Size, way: Way) -> bool:
        """Whether clips of this size are larger than one tile: of others both ways give the same."""
        most, (_, height, width) = self._encoders.largest_tile(way), size
        return height > most[0] or width > most[1]

    def of(self, size: Size, way: Way) -> bool:
        """Whether clips of this size are encoded (decoded) in tiles; that memory is too small for whole ones is
        said."""
        if not self.cuts(size, way):
            return False
        if (way, size) not in self._decided:
            self._decided[way, size] = self.asked == "tiled" or (
                self.asked == "auto" and not self._fits(size, way)
            )
        return self._decided[way, size]

    def settle(self, size: Size, way: Way, tiled: bool) -> None:
        """Decide it from outside, as the ranks that prepare agreed or the data that are there have it."""
        self._decided[way, size] = tiled

    def _fits(self, size: Size, way: Way) -> bool:
        device = self._encoders.device
        self._encoders.load_beside(way)
        needed, free = self.whole_bytes(size, way) * BESIDE[device.type], free_bytes(device)
        if needed <= free:
            return True
        say(
            f": whole ones need about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of this {device.type}'s memory are "
            f"free; {'latents' if way == 'encoded' else 'frames'} differ from whole ones' (model.vae_tiling)",
            first=f"clips of {'x'.join(map(str, size))} are {way} in tiles",
        )
        return False

    def whole_bytes(self, size: Size, way: Way) -> int:
        """Most bytes of tensors that are alive at once while one clip is encoded (decoded) whole, the VAE's among them.

        It is run on the meta device, at each call.
        """
        family = self._encoders.family
        vae = family.meta_vae
        vae.disable_tiling()
        run, shape = (
            (self._encoders.encode, (3, *size))
            if way == "encoded"
            else (self._encoders.decode, family.clip_to_latents(*size))
        )
        with torch.no_grad(), torch.device("meta"):
            clip = torch.empty(1, *shape)
            with Alive(set()) as alive:
                run(vae, clip)
        held = (clip, *vae.parameters(), *vae.buffers())
        return alive.peak + sum(tensor.nbytes for tensor in held)


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still take: of a GPU, or of the host within a container's limit (cgroup v2)."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if not Path("/proc/meminfo").is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(found["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        counted = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(counted["inactive_file"])
        free = min(free, int(limit) - used)
    return free
