"""Latents `[2B, C, F, H, W]` from 64 kB to 1 GB a tensor. Wan 480p, 81 frames, is 16 x 21 x 60 x 104."""

import torch

WAN = (16, 21, 60, 104)
SHAPES = [
    ((2, 16, 1, 32, 32), torch.bfloat16),
    ((2, 16, 4, 64, 64), torch.bfloat16),
    ((2, 16, 16, 64, 64), torch.bfloat16),
    ((2, *WAN), torch.bfloat16),
    ((16, *WAN), torch.bfloat16),
    ((64, *WAN), torch.bfloat16),
    ((32, *WAN), torch.float32),
    ((256, *WAN), torch.bfloat16),
]
