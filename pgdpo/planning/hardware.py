"""The machine that is planned for: memory and speed of its GPUs, and of what joins them."""

from __future__ import annotations

from dataclasses import dataclass

from pgdpo.errors import InputError
from pgdpo.training.flops import PEAKS

# Bytes that torch can allocate on an empty card: the vendors' sizes less what driver and ECC keep.
MEMORY = {
    "H200": 140e9,
    "H100": 80e9,
    "H800": 80e9,
    "B200": 180e9,
    "A100": 80e9,
    "L40S": 47e9,
    "MI300X": 192e9,
}
USABLE = 0.94  # the rest is for the CUDA context, NCCL, libraries' workspaces and the allocator's gaps

# Bytes a second that one GPU sees, as reached in practice, well below the data sheets: said with every plan.
NVLINK = 200e9
NETWORK = 25e9  # between nodes, 400 Gbit/s a GPU at half its rate
PCIE = 20e9
HOST_OPTIMIZER = 60e9  # of a whole host's memory, which Adam on the CPU reads and writes at this rate
NVME = 5e9  # of a whole host


@dataclass(frozen=True)
class Machine:
    """`nodes` hosts with `gpus / nodes` GPUs each."""

    name: str
    gpus: int
    nodes: int
    memory: float  # bytes of one GPU
    peak: float  # dense bf16 FLOP/s of one GPU
    mfu: float  # share of that peak that a step reaches, recomputed work included
    disk: float  # bytes a second that all ranks write together

    @property
    def usable(self) -> int:
        return int(USABLE * self.memory)

    @property
    def per_node(self) -> int:
        return self.gpus // self.nodes


def machine(
    *, gpus: int, nodes: int, name: str | None, memory_gb: float | None, mfu: float, disk_gb_per_s: float
) -> Machine:
    """Raises InputError for a GPU that is not known, or GPUs that do not divide over the nodes."""
    if gpus % nodes:
        raise InputError(
            f"--gpus is {gpus}: it is the number over all nodes and must be a multiple of --nodes {nodes}"
        )
    name = name or _this_gpu() or "H100"
    known = next((key for key in MEMORY if key.lower() in name.lower()), None)
    if known is None and memory_gb is None:
        raise InputError(
            f"--gpu is {name!r}; known are {', '.join(MEMORY)}: take the nearest one, or add --gpu-memory GB"
        )
    memory = memory_gb * 1e9 if memory_gb else MEMORY[known]
    return Machine(name, gpus, nodes, memory, PEAKS[known or "H100"], mfu, disk_gb_per_s * 1e9)


def _this_gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
