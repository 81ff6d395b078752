"""Diffusion-DPO of an LTX transformer under DeepSpeed ZeRO-3, as many ranks as `torchrun` starts."""

import copy

import deepspeed
import torch
import torch.nn.functional as F
from diffusers import LTXVideoTransformer3DModel

config = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "torch_adam": True}},
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # on a CPU it would compile this one, in C++
deepspeed.init_distributed()
torch.manual_seed(0)  # the same weights on every rank
model = LTXVideoTransformer3DModel(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=16,
    num_layers=1,
    cross_attention_dim=32,
    caption_channels=8,
)
reference = copy.deepcopy(model).requires_grad_(False)
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
reference.to(engine.device)

rank, beta = torch.distributed.get_rank(), 500
draw = torch.Generator().manual_seed(1 + rank)  # other pairs on every rank
latents = torch.randn(
    4, 8, 4, generator=draw
)  # (2B, tokens, C): two chosen clips, then their two rejected ones
text = torch.randn(2, 3, 8, generator=draw).repeat(2, 1, 1).to(engine.device)
mask = torch.ones(4, 3, device=engine.device)
for step in range(5):
    noise = torch.randn(2, 8, 4, generator=draw).repeat(2, 1, 1)
    sigma = torch.rand(2, generator=draw).repeat(2)
    noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1)).to(engine.device)
    target = (noise - latents).to(engine.device)
    inputs = dict(timestep=1000 * sigma.to(engine.device), encoder_attention_mask=mask)
    inputs |= dict(encoder_hidden_states=text, num_frames=2, height=2, width=2)
    prediction = engine(noisy, **inputs).sample
    with torch.no_grad():
        ref_prediction = reference(noisy, **inputs).sample
    chosen, rejected = F.mse_loss(prediction, target, reduction="none").mean((1, 2)).chunk(2)
    ref_chosen, ref_rejected = F.mse_loss(ref_prediction, target, reduction="none").mean((1, 2)).chunk(2)
    margin = (ref_chosen - chosen) - (ref_rejected - rejected)
    loss = -F.logsigmoid(0.5 * beta * margin).mean()
    engine.backward(loss)
    engine.step()
    mean = loss.detach().clone()
    torch.distributed.all_reduce(mean)
    if rank == 0:
        print(f"step {step}: loss {mean.item() / torch.distributed.get_world_size()!r}", flush=True)
torch.distributed.destroy_process_group()
