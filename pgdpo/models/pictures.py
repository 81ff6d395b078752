"""How pictures stand beside or in the latents that Wan's transformers are given, as its pipelines put them there."""

from __future__ import annotations

from pgdpo.models.later import torch

MASK_CHANNELS = 4  # of the pictures' mask: one for each frame that the VAE joins


def per_token(
    noisy: torch.Tensor,  # [N, C, F, H, W]
    timestep: torch.Tensor,  # [N]
    image: torch.Tensor | None,  # [N, C, 1, H, W]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(the transformer's input, its fp32 timesteps `[N, tokens]`): a given first frame stands clean at timestep 0."""
    count, _, frames, height, width = noisy.shape
    timesteps = timestep.float().view(-1, 1, 1).repeat(1, frames, (height // 2) * (width // 2))
    if image is not None:
        noisy = torch.cat([image, noisy[:, :, 1:]], dim=2)
        timesteps[:, 0] = 0
    return noisy, timesteps.view(count, -1)


def given_frames(image: torch.Tensor, pictures: tuple[int, ...]) -> torch.Tensor:
    """The mask `[N, 4, F, H, W]` before the pictures' latents `[N, C, F, H, W]`: ones where a frame is given. The first
    latent frame is one frame of the clip; of the last one's four frames the last is given."""
    count, _, *size = image.shape
    mask = image.new_zeros(count, MASK_CHANNELS, *size)
    mask[:, :, 0] = 1
    if -1 in pictures:
        mask[:, -1, -1] = 1
    return mask
