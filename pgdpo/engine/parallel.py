"""Which ranks hold the same pairs: those that share a clip's tokens.

`train.sequence_parallel: n` makes process groups of n consecutive ranks, which read the same pairs and draw the same
noise; `ulysses.py` has what they do with a clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from pgdpo.config import Config
from pgdpo.diffusion.streams import VIDEO
from pgdpo.messages.errors import InputError
from pgdpo.models.family import Family


@dataclass(frozen=True)
class Ranks:
    """This rank's place: `data_rank` of `data_size` sets of `degree` ranks, which read different pairs."""

    degree: int
    data_rank: int
    data_size: int
    data_group: dist.ProcessGroup  # one rank of each that share clips: together they hold all pairs once
    sequence_group: dist.ProcessGroup | None  # the ranks with this one's pairs; None: it has them alone
    device: torch.device


def arrange_ranks(degree: int, device: torch.device) -> Ranks:
    """Process groups of `degree` consecutive ranks. Raises InputError if the number of ranks does not divide."""
    world, rank = dist.get_world_size(), dist.get_rank()
    if world % degree:
        fitting = [n for n in range(1, world + 1) if world % n == 0]
        raise InputError(
            f"train.sequence_parallel is {degree} and {world} rank(s) run: it must divide them; start a multiple of "
            f"{degree} ranks, or set it to {' or '.join(map(str, fitting))}"
        )
    if degree == 1:
        return Ranks(1, rank, world, dist.group.WORLD, None, device)
    mesh = init_device_mesh(device.type, (world // degree, degree), mesh_dim_names=("data", "sequence"))
    groups = mesh.get_group("data"), mesh.get_group("sequence")
    return Ranks(degree, rank // degree, world // degree, *groups, device)


def check_sequence_parallel(config: Config, family: Family, latent_shape: tuple[int, ...]) -> None:
    """Refuse what cannot be shared, from configuration files alone. `latent_shape`: (C, F, H, W), the picture's.

    Raises InputError if the heads of a stream do not divide, or a rank would have no token of the picture.
    """
    degree = config.train.sequence_parallel
    says = f"train.sequence_parallel is {degree}"
    architecture, tokens = family.architecture(), family.tokens(latent_shape)
    for stream, shared in family.sharing.streams.items():
        if (heads := architecture[shared.heads]) % degree:
            whose = "" if stream == VIDEO else f"'s {stream}"
            raise InputError(f"{says}: it must divide the {heads} attention heads of this model{whose}")
    if tokens < degree:
        raise InputError(
            f"{says}: a clip has {tokens} tokens (data.num_frames, height and width decide), fewer than ranks"
        )
