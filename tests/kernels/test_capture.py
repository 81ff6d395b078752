"""What the capture of a CUDA graph stumbles over, as far as a CPU shows it: copies from the host, waiting for it."""

import pytest
import torch
from kernel_inputs import DEVICE, make_pairs
from torch.utils._python_dispatch import TorchDispatchMode

import pgdpo_kernels as ops
from pgdpo_kernels.pairs import layout

aten = torch.ops.aten
# `torch.tensor` makes its values on the host; the others need values of the device.
FORBIDDEN = {aten.lift_fresh, aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.masked_select}


class Captured(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        moves = function.overloadpacket is aten._to_copy and (kwargs or {}).get("device") not in (
            None,
            args[0].device,
        )
        if function.overloadpacket in FORBIDDEN or moves:
            raise RuntimeError(f"{function} in a captured step")
        return function(*args, **(kwargs or {}))


def test_the_mode_sees_what_it_is_for():
    for forbidden in (
        lambda: torch.tensor([1, 2]),
        lambda: torch.ones(1).item(),
        lambda: torch.ones(2).nonzero(),
    ):
        with pytest.raises(RuntimeError, match="in a captured step"), Captured():
            forbidden()


def test_a_whole_step(backend):
    """Noise, a block's ops, the loss with segments, labels, masks and weights, backward; tables at first use."""
    latents, _, ref = make_pairs((4, 3, 5, 4, 8))
    x = torch.randn(4, 60, 8, device=DEVICE, requires_grad=True)
    table, frame, vector = (torch.randn(*s, device=DEVICE) for s in ((8,), (4, 5, 8), (8,)))
    scale = frame.clone().requires_grad_()
    cos, ids = torch.rand(60, 8, device=DEVICE), torch.arange(2, device=DEVICE)
    labels, mask = torch.tensor([[1, -1, 0], [1, 1, 1]], device=DEVICE), torch.rand(2, 5, device=DEVICE)
    level, weight = torch.rand(2, device=DEVICE), torch.rand(2, device=DEVICE)
    index = [0, 0, 1, 2, 2]
    layout._kept_cut.cache_clear()
    with Captured():
        noisy, target = ops.noise_pair(latents, level, seed=1, pair_ids=ids, draw=3, prediction="flow")
        hidden, y = ops.gate_residual_norm_modulate(x, x * 0.5, (table, frame), scale, frame, weight=vector)
        hidden = ops.gate_residual(hidden, ops.norm_modulate(y, scale), frame)
        q, k = ops.qk_norm_rope(hidden, y, vector, vector, cos, cos, num_heads=1)
        q = ops.gate_heads(ops.norm_rope(q, vector, cos, cos, num_heads=1, rope="halves"), k[..., :4])
        pred = (q + k).reshape(4, 3, 5, 4, 8) + noisy
        given = {"segments": index, "mask": mask}
        loss = ops.diffusion_dpo_loss(
            pred, target, ref, beta=9.0, segment_labels=labels, weight=weight, **given
        ).loss
        errors = ops.pair_errors(pred, target, ref, cross=True, **given)
        loss = loss + ops.group_errors(pred, target, ref, 4, segments=index, mask=mask[:1]).excess.sum()
        loss = loss + ops.preference_loss(errors, beta=3.0, timestep_weight=level, safeguard_mu=0.9).loss
        loss.backward()
    assert x.grad.isfinite().all() and scale.grad.isfinite().all()


def test_numbers_compile_nothing(monkeypatch):
    """What a kernel is compiled for stays the same under another beta, threshold, weight, cap or pull."""
    from pgdpo_kernels import launch as door
    from pgdpo_kernels.pairs import pair_launch, preference

    seen = []

    def launch(kernel, grid, tensors, outputs, numbers, **constants):
        numbers = tuple(numbers)
        seen.append((kernel.__name__, [type(number) for number in numbers], constants))
        door.launch(kernel, grid, tensors, outputs, numbers, **constants)

    for module in (pair_launch, preference):
        monkeypatch.setattr(module, "launch", launch)
    options = (
        {"beta": 1.0, "logit_cap": 8.0, "chosen_pull": 0.0},
        {"beta": 16.0, "ars_k": 2.0, "ipr_threshold": 0.0, "ipr_weight": 1.0, "ars_clip": 1.0},
    )
    options[1].update(logit_cap=1.0, chosen_pull=1.0)
    runs = []
    for given in options:
        seen.clear()
        with ops.set_backend("triton"):
            pred, target, ref = make_pairs((4, 3, 5, 4, 8))
            ops.diffusion_dpo_loss(pred.requires_grad_(), target, ref, **given).loss.backward()
        runs.append(list(seen))
    assert len(runs[0]) == 4 and runs[0] == runs[1]
