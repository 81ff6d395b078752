"""A batch with its noise: what policy and reference are both asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pgdpo.config import Config
from pgdpo.data.visits.loading import for_members, to_device
from pgdpo.diffusion.draws import sigma_at, sigmas
from pgdpo.diffusion.streams import VIDEO, Latents, by_stream, seed_of, video_of
from pgdpo.diffusion.timestep_weight import timestep_weight
from pgdpo.models.family import Family
from pgdpo.models.protocols import Conditioning
from pgdpo.models.weights.kept import compute_dtype
from pgdpo.reference import broadcast_mask
from pgdpo_kernels import noise_pair


@dataclass
class Sample:
    """`B` groups of K on the device, member by member; of pairs, which are groups of two, the chosen half comes first.

    A group shares its noise and timestep (for pairs: arXiv 2311.12908, eq. 14).
    """

    latents: Latents  # [K * B, C, F, H, W], and by name of a model of several streams
    conditioning: Conditioning  # [K * B, ...]
    sigma: torch.Tensor  # [B]
    noisy: Latents  # as `latents`, in the dtype that the transformer is told in
    target: Latents
    mask: Latents | None  # where the error counts; of several streams those that have one
    region: torch.Tensor | None  # [B, 1, F, H, W] where it counts inside the groups' own masks
    timestep_weight: torch.Tensor | None  # [B] omega(sigma) of `objective.timestep_weight`; None: 1

    @property
    def each(self) -> torch.Tensor:
        """`sigma` of every sample, `[K * B]`."""
        return self.sigma.repeat(len(video_of(self.latents)) // len(self.sigma))


def draw_sample(
    batch: dict, config: Config, family: Family, device: torch.device, *, cached: bool = False
) -> Sample:
    """A batch (of `collate`) with the timesteps and noise of its draws: a pure function of seed, group and draw.

    `cached`: the reference's errors are computed apart from the policy's. Groups then meet in other batches, and their
    text keeps its padding where there are several: its length, and so the rounding, would hang on who is met.
    """
    apart = cached and config.train.micro_batch_groups > 1
    keys = {"seed": config.train.seed, "pair_ids": batch["pair_ids"]}
    sigma = sigmas(config.diffusion, draws=batch["draw"], within=family.sigma_range, **keys).to(device)
    return _noised(batch, sigma, config.train.seed, config, family, device, trimmed=not apart)


def sample_at(batch: dict, level: float, config: Config, family: Family, device: torch.device) -> Sample:
    """The same at one noise level for all its groups, with the noise of their draws under `evaluate.seed`."""
    sigma = torch.full((len(batch["pair_ids"]),), level, device=device)
    return _noised(batch, sigma, config.evaluate.seed, config, family, device)


def _noised(
    batch: dict,
    sigma: torch.Tensor,
    seed: int,
    config: Config,
    family: Family,
    device: torch.device,
    *,
    trimmed: bool = True,
) -> Sample:
    conditioning = family.trimmed(batch["conditioning"]) if trimmed else batch["conditioning"]
    latents = to_device(by_stream(batch["latents"]), device)
    conditioning = for_members(to_device(conditioning, device), len(latents[VIDEO]))
    level = family.level(sigma)
    keys = {"pair_ids": batch["pair_ids"].to(device), "draw": batch["draw"].to(device)}
    noised = {
        name: noise_pair(tensor, level, seed=seed_of(seed, name), prediction=family.prediction, **keys)
        for name, tensor in latents.items()
    }
    noisy = {name: each.to(compute_dtype(config)) for name, (each, _) in noised.items()}
    target = {name: goal for name, (_, goal) in noised.items()}
    mask = family.loss_mask(latents[VIDEO], conditioning)
    own = None if batch["mask"] is None else to_device({"mask": batch["mask"]}, device)["mask"]
    region = region_of(own, mask, latents[VIDEO])
    omega = timestep_weight(config.timestep_weight, sigma, level=level, prediction=family.prediction)
    if isinstance(batch["latents"], Mapping):
        mask = None if mask is None else {VIDEO: mask}
    else:
        latents, noisy, target = latents[VIDEO], noisy[VIDEO], target[VIDEO]
    return Sample(latents, conditioning, sigma, noisy, target, mask, region, omega)


def held_out_level(config: Config, family: Family, draw: int) -> float:
    """The noise level of one of `evaluate.draws_per_pair`, which lie evenly over those that are trained at."""
    quantile = (draw + 0.5) / config.evaluate.draws_per_pair
    return sigma_at(config.diffusion, quantile, family.sigma_range)


def region_of(
    region: torch.Tensor | None, mask: torch.Tensor | None, latents: torch.Tensor
) -> torch.Tensor | None:
    """The groups' masks `[B, 1, F, H, W]` here, less what counts nowhere (`mask`, as `pair_errors` takes it)."""
    if region is None:
        return None
    return region if mask is None else region * broadcast_mask(mask, latents, len(latents) // len(region))
