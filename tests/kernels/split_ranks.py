"""What each rank of `test_split_samples` does: every case on its own part of the samples."""

import os

import torch
import torch.distributed as dist
from kernel_inputs import make_pairs

from pgdpo_kernels import diffusion_dpo_loss, group_errors, pair_errors, set_backend
from pgdpo_kernels.backend import interpreting
from tests.interpreter import speed_up_interpreter

FIELDS = ("policy", "ref", "excess", "drift")
FRAMES, TOKENS = (4, 2, 5, 3, 4), (4, 6, 5)
INDEX = (0, 0, 1, 1, 2)
LABELS = torch.tensor([[1, -1, 0], [1, 1, 1]])
SLOPES = torch.linspace(-1.0, 1.0, 12).reshape(2, 2, 3)  # by excess and drift of [B, S]


def whole(case):
    """The unsplit tensors of a case, and how it is cut: axis, sizes of the parts by number of ranks, mask, options."""
    pred, target, ref = make_pairs(TOKENS if case == "tokens" else FRAMES, seed=3, device="cpu")
    sizes = {2: (3, 2), 3: (2, 2, 1)}
    if case == "frames":
        return (pred, target, ref), 2, sizes, None, {"segments": INDEX}
    if case == "rows":
        mask = torch.tensor([[1.0, 0.5, 0.0, 2.0, 1.0], [0.0, 1.0, 1.0, 1.0, 0.25]])
        return (pred, target, ref), 3, {2: (1, 2), 3: (1, 1, 1)}, mask[:, None, :, None, None], {}
    # Padding behind the fourth token of the first pair's samples, and of all on the last of three ranks.
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]]).float()
    pred[:, 4:] = float("nan")
    return (pred, target, ref), 1, {2: (3, 3), 3: (2, 2, 2)}, mask[..., None], {"frame_dim": 1}


def part_of(x, axis, sizes, rank):
    return None if x is None else x if x.shape[axis] == 1 else x.split(sizes, axis)[rank].clone()


def work(rank, world, case, group, backend):
    """Errors, losses and gradients of this rank's part, by name."""
    tensors, axis, sizes, mask, options = whole(case)
    sizes = sizes[world]
    pred, target, ref = (part_of(x, axis, sizes, rank) for x in tensors)
    options = {**options, "mask": part_of(mask, axis, sizes, rank), "process_group": group}
    if "segments" in options:
        begin = sum(sizes[:rank])
        options["segments"] = list(INDEX[begin : begin + sizes[rank]])
    labels = {"segment_labels": LABELS} if "segments" in options else {}
    found = {}
    with set_backend(backend):
        leaf = pred.requires_grad_()
        errors = pair_errors(leaf, target, ref, cross=True, **options)
        slopes = SLOPES[..., : errors.count.shape[1]]
        total = (errors.excess_rejected * slopes[0] + errors.drift_chosen * slopes[1]).sum()
        found |= {f"{name}_{side}": getattr(errors, f"{name}_{side}") for name in FIELDS for side in SIDES}
        found |= {"cross": errors.cross, "count": errors.count}
        found["grad of errors"] = torch.autograd.grad(total, leaf)[0]
        halves = [x.detach().requires_grad_() for x in pred.chunk(2)]
        for name, given in (("loss", leaf), ("halves", halves)):
            loss = diffusion_dpo_loss(given, target, ref, beta=300.0, objective="dpo", **labels, **options)
            grads = torch.autograd.grad(loss.loss, given)
            found |= {name: loss.loss, f"losses of {name}": loss.losses, f"grad of {name}": torch.cat(grads)}
        known = torch.cat((errors.ref_chosen, errors.ref_rejected))
        cached = diffusion_dpo_loss(leaf, target, ref_errors=known, beta=300.0, **labels, **options)
        found["cached"] = cached.logits
        same = diffusion_dpo_loss(leaf, target, pred.clone(), beta=5000.0, objective="dpo", **options)
        found |= {"excess of equals": same.errors.excess_chosen, "loss of equals": same.loss}
        groups = group_errors(leaf, target, ref, (0, 0, 1, 1), **{**options, "mask": None})
        found |= {"groups": groups.excess, "count of groups": groups.count}
    return {name: value.detach() for name, value in found.items()}


SIDES = ("chosen", "rejected")
CASES = ("frames", "rows", "tokens")
# What is exchanged is the same on both backends; the one with most in it runs on both.
RUNS = [*((case, "eager") for case in CASES), *[("frames", "triton")] * interpreting()]


def run(rank, world, folder):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.set_num_threads(1)
    if interpreting():
        speed_up_interpreter()
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    pair = dist.new_group([0, 1])
    found = {}
    for case, backend in RUNS:
        found[3, case, backend] = work(rank, 3, case, dist.group.WORLD, backend)
        if rank < 2:
            found[2, case, backend] = work(rank, 2, case, pair, backend)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
