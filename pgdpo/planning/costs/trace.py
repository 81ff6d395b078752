"""Activation memory of one forward and backward pass, traced on fake tensors: every storage that autograd would keep.

Nothing is allocated and nothing is computed. Deep models are traced with two and with three blocks of each of their
lists and extrapolated, since equal blocks keep equally much. Exact for eager PyTorch; `torch.compile` and Triton ops
that are put into the model keep less.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.models.attention_dispatch import attention_backend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pgdpo.diffusion.streams import Latents, by_stream
from pgdpo.models.encoders.alive import Alive, storage_of

Build = Callable[
    [dict[str, int]], torch.nn.Module
]  # depths of the block lists -> a policy on the meta device
Inputs = tuple[Latents, torch.Tensor, dict[str, torch.Tensor]]  # noisy, sigma, conditioning


@dataclass(frozen=True)
class Pass:
    """What a trace runs: a model family's forward on inputs made by `inputs` on the CPU."""

    predict: Callable[..., Latents]
    inputs: Callable[[], Inputs]
    bf16: bool  # under torch autocast
    cuda: bool  # with CUDA's kernels and autocast rules, on whatever machine this runs; otherwise the CPU's
    backward: bool = True  # else a forward without gradient


@dataclass(frozen=True)
class Activations:
    """Bytes of one micro-batch, inputs and parameters not counted."""

    saved: int  # kept by autograd for the backward pass
    peak: int  # most that is alive at once: that, autocast's copies of weights, temporaries
    floor: int  # alive at the end of the backward pass, when one block is left

    def offloaded(self) -> Activations:
        """With what checkpointed blocks keep in the host's memory: an estimate, one block's inputs on their way."""
        return Activations(0, max(self.floor, self.peak - self.saved), self.floor)

    def divided(self, ranks: int) -> Activations:
        return Activations(self.saved // ranks, self.peak // ranks, self.floor // ranks)


def activations(build: Build, run: Pass, depths: dict[str, int]) -> Activations:
    """Trace a policy that has `depths` blocks in its lists, from shorter ones."""
    short = dict.fromkeys(depths, 2)
    base = saved, peak = trace(build(short), run)
    floor = peak
    for name, depth in depths.items():
        longer = trace(build({**short, name: 3}), run)
        saved += (depth - 2) * (longer[0] - base[0])
        peak += (depth - 2) * (longer[1] - base[1])
        floor = min(floor, 2 * base[1] - longer[1])
    return Activations(saved, peak, floor)


def trace(transformer: torch.nn.Module, run: Pass) -> tuple[int, int]:
    """(bytes saved, peak bytes) of one forward and backward pass of a policy on the meta device, at its full depth."""
    saved: dict[int, int] = {}
    with FakeTensorMode():
        parameters = _materialise(transformer)
        inputs = run.inputs()
        noisy, sigma, conditioning = inputs
        tensors = (*parameters, *by_stream(noisy).values(), sigma, *conditioning.values())
        given = {storage_of(tensor) for tensor in tensors}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if storage_of(tensor) not in given:
                saved[storage_of(tensor)] = tensor.untyped_storage().nbytes()
            return tensor

        if run.cuda:
            _put_cuda_rules(transformer, _CudaRules(autocast=run.bf16))
        with Alive(given) as alive, attention_backend("native"):  # in backward too, which recomputes
            with (
                torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16, enabled=run.bf16),
                torch.set_grad_enabled(run.backward),
            ):
                prediction = run.predict(transformer, *inputs)
            if run.backward:
                loss = sum(made.float().square().mean() for made in by_stream(prediction).values())
                del prediction
                loss.backward()
    return sum(saved.values()), alive.peak


def _materialise(transformer: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Turn meta parameters and buffers into fake CPU tensors; gradients vanish once they are complete.

    Gradients are planned by the engine's rules, not by what autograd leaves behind.
    """
    parameters = []
    for module in transformer.modules():
        for name, old in module._parameters.items():
            if old is not None:
                data = torch.empty(old.shape, dtype=old.dtype)
                module._parameters[name] = torch.nn.Parameter(data, requires_grad=old.requires_grad)
                parameters.append(module._parameters[name])
        for name, old in module._buffers.items():
            if old is not None:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype)
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    return parameters


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


class _CudaRules(TorchFunctionMode):
    """What differs on CUDA from the CPU that the trace runs on.

    An RMS norm is one kernel (kept: input and one number per row), and autocast computes norms and powers in fp32
    (ATen/autocast_mode.h, AT_FORALL_FP32). Attention is flash attention on both: what it keeps is the same.
    """

    FP32 = (F.layer_norm, F.group_norm, torch.pow, torch.Tensor.pow, torch.rsqrt, torch.Tensor.rsqrt)

    def __init__(self, *, autocast: bool) -> None:
        super().__init__()
        self._autocast = autocast

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.rms_norm or (self._autocast and func in self.FP32):
            args = tuple(self._as_fp32(value) for value in args)
            kwargs = {name: self._as_fp32(value) for name, value in kwargs.items()}
        return _RmsNorm.apply(*args, *kwargs.values()) if func is F.rms_norm else func(*args, **kwargs)

    def _as_fp32(self, value):
        half = isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16
        return value.float() if half and self._autocast else value


def _put_cuda_rules(transformer: torch.nn.Module, rules: _CudaRules) -> None:
    """Around the model, and around each block once more: torch leaves function modes in the backward pass, where
    checkpointed blocks run again."""
    lists = [module for module in transformer.modules() if isinstance(module, torch.nn.ModuleList)]
    for module in (transformer, *(block for blocks in lists for block in blocks)):
        module.forward = _under(rules, module.forward)


def _under(rules: _CudaRules, forward: Callable) -> Callable:
    @functools.wraps(forward)
    def ruled(*args, **kwargs):
        with rules:
            return forward(*args, **kwargs)

    return ruled


class _RmsNorm(torch.autograd.Function):
    """Shapes and saved tensors of the fused RMS norm."""

    @staticmethod
    def forward(context, hidden, shape, weight=None, eps=None):
        row = hidden.new_empty(hidden.shape[:-1], dtype=torch.float32)
        context.save_for_backward(hidden, row, weight)
        return torch.empty_like(hidden)

    @staticmethod
    def backward(context, gradient):
        hidden, _, weight = context.saved_tensors
        return torch.empty_like(hidden), None, None if weight is None else torch.empty_like(weight), None
