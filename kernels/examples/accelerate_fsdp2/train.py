"""Flow matching of a Wan transformer under accelerate's FSDP2, as many ranks as `torchrun` starts."""

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import set_seed
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

plugin = FullyShardedDataParallelPlugin(
    fsdp_version=2,
    auto_wrap_policy="transformer_based_wrap",
    transformer_cls_names_to_wrap=[WanTransformerBlock.__name__],
    reshard_after_forward=True,
)
accelerator = Accelerator(fsdp_plugin=plugin, cpu=not torch.cuda.is_available())
set_seed(0)  # the same weights on every rank
model = WanTransformer3DModel(
    num_attention_heads=2, attention_head_dim=16, text_dim=8, num_layers=2, ffn_dim=32
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
model, optimizer = accelerator.prepare(model, optimizer)
set_seed(1, device_specific=True)  # other clips on every rank
latents = torch.randn(2, 16, 1, 4, 4, device=accelerator.device)
text = torch.randn(2, 4, 8, device=accelerator.device)
for step in range(5):
    noise = torch.randn_like(latents)
    sigma = torch.rand(len(latents), device=accelerator.device)
    level = sigma.view(-1, 1, 1, 1, 1)
    velocity = model((1 - level) * latents + level * noise, 1000 * sigma, text).sample
    loss = torch.nn.functional.mse_loss(velocity, noise - latents)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    mean = accelerator.reduce(loss.detach(), reduction="mean").item()
    if accelerator.is_main_process:
        print(f"step {step}: loss {mean!r}", flush=True)
accelerator.end_training()
