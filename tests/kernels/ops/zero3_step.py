"""One ZeRO-3 step of a patched tiny Wan with LoRA: prints the loss and the gradient norm. Run by test_training."""

import os
import sys

os.environ |= {"TRITON_INTERPRET": "1", "DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", "RANK": "0"}
os.environ |= {"WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": sys.argv[2]}

import deepspeed
import torch
from peft import LoraConfig
from tiny_models import build

from pgdpo_kernels import apply_to, set_backend

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo")
model, inputs = build("wan")
if sys.argv[3] == "lora":
    torch.manual_seed(3)
    model.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))
if sys.argv[1] == "fused":
    set_backend("triton")
    apply_to(model, strict=True)
config = {"train_batch_size": 2, "train_micro_batch_size_per_gpu": 2, "zero_allow_untested_optimizer": True}
config |= {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
config |= {"zero_force_ds_cpu_optimizer": False}
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(trained, lr=0.1), config=config)
assert model.blocks[0].attn1.norm_q.weight.numel() == 0, "nothing is sharded: the test would show nothing"
losses = []
for _ in range(2):
    loss = engine(**inputs, return_dict=False)[0].square().mean()
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
print("LOSSES", *losses)
torch.distributed.destroy_process_group()
