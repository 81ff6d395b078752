"""Fused ops in a plain PyTorch loop around a diffusers model: `python kernels/examples/plain_loop.py`."""

import torch
from diffusers import WanTransformer3DModel

import pgdpo_kernels

device = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU: eager maths, or TRITON_INTERPRET=1
model = WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, text_dim=8, num_layers=1, ffn_dim=32
)
print(pgdpo_kernels.apply_to(model.to(device)))  # ['blocks.0.forward', 'blocks.0.attn1.processor']
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
latents, text = torch.randn(1, 16, 1, 4, 4, device=device), torch.randn(1, 4, 8, device=device)
for step in range(5):
    loss = (model(latents, torch.tensor([500.0], device=device), text).sample - latents).square().mean()
    loss.backward(), optimizer.step(), optimizer.zero_grad()
    print(step, loss.item())
