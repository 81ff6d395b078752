"""Which ranks hold the same pairs, and how they share a clip's tokens (Ulysses, arXiv 2309.14509).

`train.sequence_parallel: n` makes groups of n consecutive ranks. A group reads the same pairs and draws the same noise.
Inside the transformer each of its ranks has 1/n of the tokens; around attention, diffusers' context parallelism trades
tokens for heads. The last projection's outputs are gathered, so that every rank of the group has the whole prediction:
squared errors, loss and metrics are those of one rank, and nothing has to be summed before the sigmoid.

The gather hands each rank the gradient of its own tokens, so that a rank's weight gradients are its tokens' share and
the group's sum is the whole. DeepSpeed sees plain data parallelism and averages over all ranks, at every ZeRO stage;
`Ranks.scale_loss` multiplies by n: (1/world) sum over ranks of n g = mean over groups of the group's sum of g.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from diffusers.hooks import apply_context_parallel
from diffusers.models import ParallelConfig
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pgdpo.errors import InputError
from pgdpo.models.family import Family
from pgdpo.settings import Config


@dataclass(frozen=True)
class Ranks:
    """This rank's place: `data_rank` of `data_size` groups that read different pairs, `degree` ranks in each."""

    degree: int
    data_rank: int
    data_size: int
    data_group: dist.ProcessGroup  # one rank of every sequence group: together they hold all pairs once
    mesh: DeviceMesh | None
    device: torch.device

    def scale_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss whose gradient, averaged over all ranks, is the sum over a sequence group of the tokens' shares."""
        return loss * self.degree


def arrange_ranks(degree: int, device: torch.device) -> Ranks:
    """Sequence groups of `degree` consecutive ranks. Raises InputError if the number of ranks does not divide."""
    world, rank = dist.get_world_size(), dist.get_rank()
    if world % degree:
        fitting = [n for n in range(1, world + 1) if world % n == 0]
        raise InputError(
            f"train.sequence_parallel is {degree} and {world} rank(s) run: it must divide them; start a multiple of "
            f"{degree} ranks, or set it to {' or '.join(map(str, fitting))}"
        )
    if degree == 1:
        return Ranks(1, rank, world, dist.group.WORLD, None, device)
    mesh = init_device_mesh(
        device.type, (world // degree, 1, degree), mesh_dim_names=("data", "ring", "ulysses")
    )
    return Ranks(degree, rank // degree, world // degree, mesh.get_group("data"), mesh, device)


def check_sequence_parallel(config: Config, family: Family, latent_shape: tuple[int, ...]) -> None:
    """Refuse what cannot be shared, from configuration files alone. `latent_shape`: (C, F, H, W).

    Raises InputError if diffusers has no plan for the family, its masks or the attention backend, or if heads or tokens
    do not divide.
    """
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    degree = config.train.sequence_parallel
    if degree == 1:
        return
    says = f"train.sequence_parallel is {degree}"
    if family.transformer_class._cp_plan is None:
        raise InputError(
            f"{says}: diffusers does not say how {family.transformer_class.__name__} shares its tokens; set it to 1"
        )
    if family.attention_mask is not None:
        raise InputError(
            f"{says}: attention of a {family.transformer_class.__name__} is masked, and diffusers' masks do not follow "
            "the heads that a rank has; set it to 1"
        )
    able = sorted(_AttentionBackendRegistry._supports_context_parallel)
    if config.model.attention not in able:
        raise InputError(
            f"{says}: diffusers has no shared attention for model.attention {config.model.attention!r}; use one of "
            f"{', '.join(able)}"
        )
    counts = {
        "attention heads of this model": family.architecture()["num_attention_heads"],
        "tokens of a clip (data.num_frames, height and width decide)": family.tokens(latent_shape),
    }
    for what, count in counts.items():
        if count % degree:
            raise InputError(f"{says}: it must divide the {count} {what}")


def share_tokens(transformer: torch.nn.Module, ranks: Ranks) -> None:
    """Have the transformer compute its rank's part of the tokens; its inputs and outputs stay whole.

    What diffusers' `enable_parallelism` does, without its count of accelerators, which is 0 on a CPU.
    """
    if ranks.degree == 1:
        return
    shared = ContextParallelConfig(ulysses_degree=ranks.degree, mesh=ranks.mesh)
    config = ParallelConfig(context_parallel_config=shared)
    config.setup(dist.get_rank(), dist.get_world_size(), ranks.device, mesh=ranks.mesh)
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = config
    apply_context_parallel(transformer, shared, transformer._cp_plan)
