"""Bytes that the element-wise half of one transformer block moves and keeps, eager and fused.

Real diffusers blocks at full width on fake tensors, which hold no data: every operation's inputs and outputs are
counted as they pass the dispatcher, but for matrix products, attention and the activations of the feed-forward.
Parameters are frozen, as under LoRA. `python tests/kernels/ops/block_bytes.py` prints the table; who calls `count` sets
TRITON_INTERPRET=1, with which fused ops take CPU tensors. None of their kernels runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOKENS, TEXT, SOUND = 9360, 256, 250
UNCOUNTED = ("prim::", "aten::empty", "aten::new_empty", "aten::_unsafe_view")
HEAVY = ("mm", "addmm", "bmm", "scaled_dot_product", "gelu", "silu")


class Counted(TorchDispatchMode):
    """Adds up the bytes of what every operation reads and writes; views and allocations move none."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.name()
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not views and not name.startswith(UNCOUNTED) and not any(heavy in name for heavy in HEAVY):
            tensors = {id(x): x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)}
            self.bytes += sum(x.numel() * x.element_size() for x in tensors.values())
        return out


@dataclass
class Bytes:
    """Per element of the block's hidden states; `saved` is what autograd keeps for backward."""

    forward: float
    backward: float
    saved: float


def measure(run: Callable[[], torch.Tensor | tuple], elements: int, parameters: set[int]) -> Bytes:
    saved = {}

    def pack(x):
        if id(x) not in parameters:
            saved[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
        return x

    with Counted() as forward, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = run()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    slopes = [torch.empty_like(x) for x in outputs]
    with Counted() as backward:
        torch.autograd.backward(outputs, slopes)
    return Bytes(forward.bytes / elements, backward.bytes / elements, sum(saved.values()) / elements)


@contextlib.contextmanager
def one_pass_rms_norm():
    """torch's RMSNorm is one kernel on a GPU, many on a CPU: count it as LayerNorm, which is one on both."""
    rms_norm = F.rms_norm
    F.rms_norm = lambda x, shape, weight=None, eps=None: F.layer_norm(x, shape, weight, None, eps or 1e-6)
    try:
        yield
    finally:
        F.rms_norm = rms_norm


def hidden(tokens: int, width: int) -> torch.Tensor:
    return torch.empty(1, tokens, width, dtype=torch.bfloat16).requires_grad_()


def wan(heads=12, head=128, per_token=False):
    from diffusers import WanTransformer3DModel

    width = heads * head
    model = WanTransformer3DModel(num_attention_heads=heads, num_layers=1, ffn_dim=4 * width)
    tables = [torch.empty(1, TOKENS, 1, head) for _ in range(2)]
    temb = torch.empty(1, *[TOKENS] * per_token, 6, width, dtype=torch.bfloat16)
    text = torch.empty(1, TEXT, width, dtype=torch.bfloat16)
    return model, lambda: model.blocks[0](hidden(TOKENS, width), text, temb, tables), TOKENS * width


def hunyuan(stack):
    from diffusers import HunyuanVideoTransformer3DModel

    model = HunyuanVideoTransformer3DModel(num_layers=1, num_single_layers=1, num_refiner_layers=1)
    tables = [torch.empty(TOKENS, 128) for _ in range(2)]
    temb = torch.empty(1, 3072, dtype=torch.bfloat16)

    def run():
        return getattr(model, stack)[0](hidden(TOKENS, 3072), hidden(TEXT, 3072), temb, None, tables)

    return model, run, (TOKENS + TEXT) * 3072


def cogvideox():
    from diffusers import CogVideoXTransformer3DModel

    model = CogVideoXTransformer3DModel(num_attention_heads=48, num_layers=1)
    tables = [torch.empty(TOKENS, 64) for _ in range(2)]
    temb = torch.empty(1, 512, dtype=torch.bfloat16)

    def run():
        return model.transformer_blocks[0](hidden(TOKENS, 3072), hidden(TEXT, 3072), temb, tables)

    return model, run, (TOKENS + TEXT) * 3072


def ltx():
    from diffusers import LTXVideoTransformer3DModel

    model = LTXVideoTransformer3DModel(num_layers=1)
    temb, text = torch.empty(1, 1, 6 * 2048), torch.empty(1, TEXT, 2048)
    temb, text = temb.to(torch.bfloat16), text.to(torch.bfloat16)

    def run():
        half = "forward" in model.rope.__dict__
        tables = [torch.empty(1, TOKENS, 1024 if half else 2048) for _ in range(2)]
        return model.transformer_blocks[0](hidden(TOKENS, 2048), text, temb, tables)

    return model, run, TOKENS * 2048


def ltx2(later=False):
    """Picture and ten seconds of sound, halves of heads turned; `later`: gated, prompts and their queries modulated."""
    from diffusers import LTX2VideoTransformer3DModel

    flags = ("gated_attn", "audio_gated_attn", "cross_attn_mod", "audio_cross_attn_mod", "perturbed_attn")
    model = LTX2VideoTransformer3DModel(num_layers=1, rope_type="split", **dict.fromkeys(flags, later))
    sizes = (TOKENS, 4096), (SOUND, 2048)
    text = [torch.empty(1, TEXT, width, dtype=torch.bfloat16) for _, width in sizes]
    counts = (9, 4, 1, 2) if later else (6, 4, 1)
    tembs = [torch.empty(1, 1, count * width, dtype=torch.bfloat16) for count in counts for _, width in sizes]
    of_prompts = () if later else (None, None)

    def run():
        states = [hidden(tokens, width) for tokens, width in sizes]
        tables = [
            [torch.empty(1, tokens, 32, size // 64).transpose(1, 2) for _ in range(2)]
            for (tokens, _), size in zip(2 * sizes, (4096, 2048, 2048, 2048), strict=True)
        ]
        return model.transformer_blocks[0](*states, *text, *tembs, *of_prompts, *tables)

    return model, run, sum(tokens * width for tokens, width in sizes)


BLOCKS = {
    "Wan 2.1, 1.3B": wan,
    "Wan 2.1, 14B": lambda: wan(heads=40),
    "Wan 2.2, 5B, a timestep per token": lambda: wan(heads=24, per_token=True),
    "HunyuanVideo, dual": lambda: hunyuan("transformer_blocks"),
    "HunyuanVideo, single": lambda: hunyuan("single_transformer_blocks"),
    "CogVideoX-5b": cogvideox,
    "LTX-Video 2B": ltx,
    "LTX-2": ltx2,
    "LTX-2.3": lambda: ltx2(later=True),
}


def count(block: str) -> tuple[Bytes, Bytes]:
    """Eager's and the fused block's bytes."""
    from pgdpo_kernels import apply_to, set_backend

    with FakeTensorMode(), set_backend("triton"), one_pass_rms_norm():
        model, run, elements = BLOCKS[block]()
        for path, module in model.named_modules():
            for name, tensor in [*module._parameters.items()]:
                if tensor is not None:
                    kept = {name, path.split(".")[-1]} & set(model._keep_in_fp32_modules or [])
                    dtype = torch.float32 if kept else torch.bfloat16
                    frozen = torch.nn.Parameter(torch.empty(tensor.shape, dtype=dtype), requires_grad=False)
                    module._parameters[name] = frozen
        parameters = {id(x) for x in model.parameters()}
        eager = measure(run, elements, parameters)
        apply_to(model, strict=True)
        return eager, measure(run, elements, parameters)


def table(counts: dict[str, tuple[Bytes, Bytes]]) -> str:
    lines = ["| block | forward | backward | saved |", "|---|---|---|---|"]
    for name, (eager, fused) in counts.items():
        cells = (
            f"{getattr(eager, k):.0f} → {getattr(fused, k):.0f}" for k in ("forward", "backward", "saved")
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    print(table({name: count(name) for name in BLOCKS}))
