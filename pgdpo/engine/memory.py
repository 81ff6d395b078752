"""What a step keeps of a forward for its backward: gradient checkpointing, activation offload, compiled blocks."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from pgdpo.config import ModelConfig
from pgdpo.messages.errors import InputError

# The operator that each attention backend of diffusers ends in. What it returns is kept by `selective`: a block's
# attention costs most of its FLOPs where clips are long, its output as much memory as one more block input.
SDPA = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
)
ATTENTION_OPS = {
    "native": SDPA,
    "_native_flash": SDPA,
    "_native_efficient": SDPA,
    "_native_cudnn": SDPA,
    "flash": ("flash_attn::_flash_attn_forward",),
    "xformers": (
        "xformers_flash3::flash_fwd",
        "xformers_flash::flash_fwd",
        "aten::_efficient_attention_forward",
    ),
}


def save_memory(transformer: torch.nn.Module, model: ModelConfig) -> None:
    """Set up what `model.gradient_checkpointing` and `model.compile` ask for.

    Raises InputError if the attention backend's outputs cannot be told from other tensors, or the architecture has no
    repeated blocks.
    """
    if model.gradient_checkpointing != "none":
        transformer.enable_gradient_checkpointing(_checkpointing(model))
    if model.compile != "none":
        try:
            transformer.compile_repeated_blocks(backend=model.compile)
        except ValueError as error:
            raise InputError(f"model.compile is {model.compile!r}: {error}; set it to `none`") from error


def _checkpointing(model: ModelConfig) -> Callable:
    """`(block, *inputs) -> outputs` that keeps what the setting says and recomputes the rest in the backward pass."""
    options = {"use_reentrant": False}
    if model.gradient_checkpointing == "selective":
        check_selective(model)
        options["context_fn"] = functools.partial(_selective_contexts, ATTENTION_OPS[model.attention])
    return lambda block, *inputs: checkpoint(block.__call__, *inputs, **options)


def check_selective(model: ModelConfig) -> None:
    """Raises InputError if `selective` cannot tell the attention backend's outputs from other tensors."""
    if model.gradient_checkpointing == "selective" and model.attention not in ATTENTION_OPS:
        raise InputError(
            f"model.gradient_checkpointing is `selective`: the operator of model.attention {model.attention!r} is not "
            f"known, so its outputs cannot be kept; use `full`, or one of {', '.join(ATTENTION_OPS)}"
        )


def _selective_contexts(operators: tuple[str, ...]) -> tuple[TorchDispatchMode, TorchDispatchMode]:
    """Contexts of a checkpointed block's forward and of its recomputation, which takes the operators' outputs as kept.

    torch's `create_selective_checkpoint_contexts` wants every operator again in the recomputation, in the same number:
    ZeRO-3's gathers of weights, some of them ahead of their use, are not.
    """
    outputs: deque = deque()
    return _KeepOutputs(operators, outputs), _ReplayOutputs(operators, outputs)


class _KeepOutputs(TorchDispatchMode):
    def __init__(self, operators: tuple[str, ...], outputs: deque) -> None:
        super().__init__()
        self.operators = operators
        self.outputs = outputs

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # compiled blocks run as ever, and their attention passes here

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        output = operator(*args, **kwargs or {})
        if operator.name() in self.operators:
            self.outputs.append(tree_map_only(torch.Tensor, torch.Tensor.detach, output))
        return output


class _ReplayOutputs(_KeepOutputs):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.name() in self.operators:
            return self.outputs.popleft()
        return operator(*args, **kwargs or {})


def with_activation_offload(forward: Callable, device: torch.device) -> Callable:
    """`forward` whose checkpointed blocks keep their inputs in the host's memory (pinned beside a GPU) until backward.

    Inside a checkpointed block torch's own hooks stand nearer, so that weights are never copied, and what `selective`
    keeps of attention stays on the device.
    """

    def offloading(*args, **kwargs):
        with torch.autograd.graph.save_on_cpu(pin_memory=device.type == "cuda"):
            return forward(*args, **kwargs)

    return offloading
