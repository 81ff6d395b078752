"""Microseconds of the host for a call of each op, at this checkout and at an earlier one in turn:

    PYTHONPATH=.:kernels python -m benchmarks.ops.host [--before CHECKOUT] [--rounds 30]

-> results/host_time.json. The launches are left out: each kernel is called with all its arguments and does nothing, so
that what is timed (CPU time of the process) is the Python and PyTorch around it, on CPU tensors, whose sizes do not
matter. What Triton itself takes for a launch, and CUDA, comes on top; no GPU was used. `forward and backward` goes
through `torch.autograd.grad`, most of whose time is PyTorch's own. Each checkout's ops run in a process of their own;
for each op the two take turns, and the ratio is the median of the turns'.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from ..report import RESULTS, machine, tree_hash, write

ROOT = RESULTS.parent.parent
CALLS = 200  # of a turn

Call = tuple[Callable[[], tuple[torch.Tensor, ...]], torch.Tensor]  # the op, and what its gradient is by


def calls(device: str = "cpu") -> dict[str, Call]:
    """Every op as a patched block or a training step calls it: of the modulation and the weights none is trained."""
    import pgdpo_kernels as ops

    def draw(*shape: int, grad: bool = False) -> torch.Tensor:
        return torch.randn(shape, device=device, requires_grad=grad)

    x, branch, q, k = (draw(2, 8, 256, grad=True) for _ in range(4))
    gate, scale, shift = draw(2, 3, 256).chunk(3, 1)
    pairs = tuple(zip(draw(3, 256).unbind(0), draw(2, 3, 256).unbind(1), strict=True))
    weight, cos, sin = draw(256), draw(8, 128), draw(8, 128)
    pred, target, ref = draw(4, 4, 3, 8, 8, grad=True), draw(4, 4, 3, 8, 8), draw(4, 4, 3, 8, 8)
    level, ids = torch.rand(2, device=device), torch.arange(2, device=device)
    loss, noise = {"beta": 500.0}, {"seed": 1, "pair_ids": ids, "draw": ids, "prediction": "flow"}

    def excess():
        found = ops.pair_errors(pred, target, ref)
        return found.excess_chosen, found.excess_rejected

    def fused(*modulation):
        return lambda: ops.gate_residual_norm_modulate(x, branch, *modulation)

    return {
        "norm_modulate": (lambda: (ops.norm_modulate(x, scale, shift),), x),
        "gate_residual": (lambda: (ops.gate_residual(x, branch, gate),), x),
        "gate_residual_norm_modulate": (fused(gate, scale, shift), x),
        "gate_residual_norm_modulate of (table, embedding)": (fused(*pairs), x),
        "qk_norm_rope": (lambda: ops.qk_norm_rope(q, k, weight, weight, cos, sin, num_heads=2), q),
        "pair_errors": (excess, pred),
        "diffusion_dpo_loss": (lambda: (ops.diffusion_dpo_loss(pred, target, ref, **loss).loss,), pred),
        "noise_pair": (lambda: ops.noise_pair(target, level, **noise), target),
    }


def no_launch(kernel, grid: tuple[int, ...]) -> Callable[..., None]:
    """For `KernelInterface.__getitem__`: a kernel takes its arguments and returns."""
    return lambda *arguments, **constants: None


def gradient(call: Callable[[], tuple[torch.Tensor, ...]], leaf: torch.Tensor) -> tuple[torch.Tensor, ...]:
    outputs = call()
    return torch.autograd.grad(outputs, leaf, outputs)


def closures() -> dict[tuple[str, str], Callable[[], object]]:
    out = {}
    for name, (call, leaf) in calls().items():
        out[name, "forward"] = out[name, "without gradients"] = call
        if leaf.requires_grad:
            out[name, "forward and backward"] = functools.partial(gradient, call, leaf)
    return out


def work() -> None:
    """Answer lines from standard input: how often to call which op in which way -> microseconds a call."""
    from triton.runtime.jit import KernelInterface

    KernelInterface.__getitem__ = no_launch
    found = closures()
    gc.disable()
    print(json.dumps([list(key) for key in found]), flush=True)
    for line in sys.stdin:
        name, way, count = json.loads(line)
        call = found[name, way]
        with torch.set_grad_enabled(way != "without gradients"):
            started = time.process_time()
            for _ in range(count):
                call()
            seconds = time.process_time() - started
        print(seconds / count * 1e6, flush=True)


class Worker:
    """The ops of one checkout, by this file's calls."""

    def __init__(self, checkout: Path) -> None:
        environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(checkout.resolve() / "kernels")))
        command = [sys.executable, "-m", "benchmarks.ops.host", "--work"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.keys = [tuple(key) for key in json.loads(self.process.stdout.readline())]

    def microseconds(self, key: tuple[str, str], count: int = CALLS) -> float:
        print(json.dumps([*key, count]), file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(workers: dict[str, Worker], rounds: int) -> dict:
    """Op -> way -> medians of each checkout's turns, and of `now / before`."""
    found: dict[str, dict] = {}
    for key in workers["now"].keys:
        turns = {name: [] for name in workers}
        for turn in range(rounds + 1):  # the first warms up
            for name in sorted(workers, reverse=bool(turn % 2)):
                turns[name].append(workers[name].microseconds(key))
        row = {f"{name}_us": round(median(values[1:]), 1) for name, values in turns.items()}
        if "before" in turns:
            both = zip(turns["now"][1:], turns["before"][1:], strict=True)
            row["ratio"] = round(median(now / before for now, before in both), 3)
        found.setdefault(key[0], {})[key[1]] = row
        print(f"{key[0]:50} {key[1]:22} " + " ".join(f"{name} {value}" for name, value in row.items()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=RESULTS / "host_time.json")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        return work()
    checkouts = {"now": ROOT} | ({"before": asked.before} if asked.before else {})
    workers = {name: Worker(checkout) for name, checkout in checkouts.items()}
    result = {
        "what": "host microseconds of a call on a CPU, Triton's and CUDA's launch left out",
        "machine": machine(),
        "kernels_tree": {name: tree_hash(checkout / "kernels") for name, checkout in checkouts.items()},
        "rounds": asked.rounds,
        "calls_a_round": CALLS,
        "ops": compare(workers, asked.rounds),
    }
    for worker in workers.values():
        worker.close()
    print(write(result, "host_time", asked.out))


if __name__ == "__main__":
    main()
