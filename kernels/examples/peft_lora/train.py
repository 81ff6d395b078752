"""Diffusion-DPO of a Wan transformer with peft's LoRA, the adapter switched off for the reference."""

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from peft import LoraConfig, get_peft_model

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
model = WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, text_dim=8, num_layers=2, ffn_dim=32
)
model.to(device)
model = get_peft_model(
    model, LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
)
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)

beta, draw = 500, torch.Generator().manual_seed(1)
latents = torch.randn(
    4, 16, 1, 4, 4, generator=draw
)  # (2B, C, F, H, W): two chosen clips, then their rejected ones
text = torch.randn(2, 4, 8, generator=draw).repeat(2, 1, 1).to(device)
for step in range(5):
    noise = torch.randn(2, *latents.shape[1:], generator=draw).repeat(2, 1, 1, 1, 1)
    sigma = torch.rand(2, generator=draw).repeat(2)
    noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1, 1)).to(device)
    target, timestep = (noise - latents).to(device), 1000 * sigma.to(device)
    prediction = model(noisy, timestep, text).sample
    with torch.no_grad(), model.disable_adapter():
        ref_prediction = model(noisy, timestep, text).sample
    error = F.mse_loss(prediction, target, reduction="none").mean((1, 2, 3, 4))
    ref_error = F.mse_loss(ref_prediction, target, reduction="none").mean((1, 2, 3, 4))
    chosen, rejected = (ref_error - error).chunk(2)
    loss = -F.logsigmoid(0.5 * beta * (chosen - rejected)).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {loss.item()!r}", flush=True)
