"""Six steps of diffusion-pipe's Wan: `python step.py FOLDER`, with diffusion-pipe on the path.

`train.py` itself wants a GPU: NCCL, and FlashAttention, for which PyTorch's attention stands in here on a CPU. ComfyUI,
a submodule that its Wan does not call, is a stand-in too.
"""

import sys
from unittest.mock import MagicMock

import torch

COMFY = ("comfy", "comfy.utils", "comfy.sd", "comfy.sd1_clip", "comfy.model_management")
sys.modules |= {name: MagicMock() for name in (*COMFY, "comfy_api", "comfy_api.latest")}
if not torch.cuda.is_available():
    torch.cuda.current_device = lambda: "cpu"  # a default argument of its text encoder

import models.wan.model  # noqa: E402
from models.wan.wan import WanModel, WanPipeline  # noqa: E402
from utils.common import get_t_distribution  # noqa: E402


def attention(q, k, v, k_lens=None, window_size=(-1, -1)):
    """`flash_attention` of the tiny model, without padding: `[B, N, heads, size]`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


if not torch.cuda.is_available():
    models.wan.model.flash_attention = attention
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
model = WanModel(dim=48, ffn_dim=64, freq_dim=16, text_dim=32, text_len=6, num_heads=2, num_layers=2)
torch.nn.init.normal_(model.head.head.weight, std=0.1)  # it starts at zero: no gradient would pass
pipeline = WanPipeline.__new__(WanPipeline)  # its __init__ wants a checkpoint, a VAE and a text encoder
pipeline.config, pipeline.model_config = {}, {"cache_text_embeddings": True}
pipeline.model_type, pipeline.cache_text_embeddings = "t2v", True
pipeline.transformer, pipeline.offloader = model.to(device), MagicMock()  # that one makes CUDA streams
pipeline.t_dist = get_t_distribution(pipeline.model_config)
layers, loss_of = torch.nn.Sequential(*pipeline.to_layers()), pipeline.get_loss_fn()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
given = {
    "latents": torch.randn(2, 16, 2, 4, 4, device=device),
    "mask": None,
    "text_embeddings": torch.randn(2, 6, 32, device=device),
    "seq_lens": torch.tensor([6, 6], device=device),
}
for step in range(6):
    (noisy, _, t, text, lengths, _), (target, _) = pipeline.prepare_inputs(given)
    nothing = torch.tensor([], device=device)  # as its data loader makes of None
    loss = loss_of(layers((noisy, nothing, t, text, lengths, nothing)), (target, nothing))
    print(f"step {step}: loss {loss.item()!r}", flush=True)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
