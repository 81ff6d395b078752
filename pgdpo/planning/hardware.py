"""The machine that is planned for: memory and speed of its GPUs, and of what joins them."""

from __future__ import annotations

from dataclasses import dataclass

from pgdpo.messages.errors import InputError
from pgdpo.planning.cards import CARDS, find_card, variants

USABLE = 0.94  # the rest is for the CUDA context, NCCL, libraries' workspaces and the allocator's gaps

# Bytes a second as reached in practice, well below the data sheets: said with every plan.
LINK = 0.45  # of a card's links
NETWORK = 25e9  # between nodes, for each GPU: 400 Gbit/s at half its rate
PCIE = 20e9  # between a GPU and its host
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
    bandwidth: float  # bytes a second of one GPU's memory, by the data sheet
    link: float  # bytes a second that one GPU sends to others of its host
    mfu: float  # share of that peak that a step reaches, recomputed work included
    disk: float  # bytes a second that all ranks write together
    assumed: bool = False  # nobody named a GPU, and there is none here

    @property
    def usable(self) -> int:
        return int(USABLE * self.memory)

    @property
    def per_node(self) -> int:
        return self.gpus // self.nodes

    def between(self, ranks: int) -> float:
        """Bytes a second that one GPU sends within a group of so many ranks that follow each other."""
        return self.link if ranks <= self.per_node else min(self.link, NETWORK)


def machine(
    *, gpus: int, nodes: int, name: str | None, memory_gb: float | None, mfu: float, disk_gb_per_s: float
) -> Machine:
    """`name`: by default this machine's GPU, with the memory that it has, else an H100; `memory_gb` replaces that.

    Raises InputError for a GPU that is not known, or GPUs that do not divide over the nodes.
    """
    if gpus % nodes:
        raise InputError(
            f"--gpus is {gpus}: it is the number over all nodes and must be a multiple of --nodes {nodes}"
        )
    known = name or this_gpu()
    card = find_card(known or "H100")
    if card is None:
        raise InputError(
            f"--gpu is {known!r}, whose rate is not known; known are {', '.join(variants(known) or CARDS)}: name the "
            "one that is nearest in speed, with --gpu-memory GB for the memory of yours"
        )
    own = card.memory if name or known is None else this_memory()
    return Machine(
        known or "H100",
        gpus,
        nodes,
        memory_gb * 1e9 if memory_gb else own,
        card.peak,
        card.bandwidth,
        LINK * card.link,
        mfu,
        disk_gb_per_s * 1e9,
        assumed=known is None,
    )


def this_gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def this_memory() -> int:
    """Bytes of this machine's GPU."""
    import torch

    return torch.cuda.get_device_properties().total_memory
