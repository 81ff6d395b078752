"""How exact the preference logits and gradients are: ours and the public formulas against float64.

`python -m benchmarks.ops.exactness` prints the figures and writes them under benchmarks/results/. On bf16 inputs,
4 pairs of a million elements, errors near 0.1, the policy 1e-3 away from the reference, beta 5000.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from pgdpo_kernels import diffusion_dpo_loss, set_backend

from ..report import machine, write

BETA = 5000.0
SHAPE = (8, 16, 10, 50, 125)  # 1e6 elements a sample
# The figures' shape, and that of the batch whose bits are compared. On a CPU Triton means its interpreter, a million
# times as slow: a smaller batch of 64 pairs shows the same.
ON_A_GPU = (SHAPE, (128, 16, 10, 50, 25))
ON_A_CPU = (SHAPE, (128, 2, 3, 20, 25))
TINY = ((4, 4, 3, 20, 20), (8, 2, 2, 10, 10))


def make_inputs(shape, device, dtype=torch.bfloat16, distance=1e-3):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(shape, generator=generator)
    ref = target + math.sqrt(0.1) * torch.randn(shape, generator=generator)
    pred = ref + distance * torch.randn(shape, generator=generator)
    return tuple(x.to(dtype).to(device) for x in (pred, target, ref))


def oracle(pred, target, ref) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the gradient of the mean loss, in float64 throughout."""
    pred = pred.detach().double().requires_grad_()
    target, ref = target.double(), ref.double()
    policy, reference = (((x - target) ** 2).flatten(1).mean(1) for x in (pred, ref))
    (pw, pl), (rw, rl) = policy.chunk(2), reference.chunk(2)
    logits = -0.5 * BETA * ((pw - pl) - (rw - rl))
    loss = torch.nn.functional.softplus(-logits).mean()
    return logits.detach(), torch.autograd.grad(loss, pred)[0]


def public_logits(pred, target, ref, reference_dtype) -> torch.Tensor:
    """Four means, subtracted: the policy's in fp32, the reference's in fp32 or bf16, as public trainers do."""
    policy = (pred.float() - target.float()).pow(2).flatten(1).mean(1)
    reference = (ref.to(reference_dtype) - target.to(reference_dtype)).pow(2).flatten(1).mean(1)
    (pw, pl), (rw, rl) = policy.chunk(2), reference.chunk(2)
    return -0.5 * BETA * ((pw - pl) - (rw - rl))


def loss_and_gradient(pred, target, ref, **options):
    policy = pred.detach().clone().requires_grad_()
    result = diffusion_dpo_loss(policy, target, ref, beta=BETA, objective="dpo", **options)
    return result, torch.autograd.grad(result.loss, policy)[0]


def same_bits(inputs, runs=10) -> dict[str, bool]:
    """Over runs, with and without grad, and of each pair alone."""
    first, gradient = loss_and_gradient(*inputs)
    pairs = len(inputs[0]) // 2
    repeated = all(
        torch.equal(first.logits, result.logits) and torch.equal(gradient, other)
        for result, other in (loss_and_gradient(*inputs) for _ in range(runs - 1))
    )
    with torch.no_grad():
        silent = diffusion_dpo_loss(*inputs, beta=BETA, objective="dpo")
    alone = all(
        torch.equal(
            diffusion_dpo_loss(*(x[[pair, pair + pairs]] for x in inputs), beta=BETA, objective="dpo").logits,
            first.logits[pair : pair + 1],
        )
        for pair in range(0, pairs, max(1, pairs // 4))
    )
    return {
        f"{runs} runs": repeated,
        "without grad": torch.equal(silent.logits, first.logits),
        f"alone and in a batch of {pairs}": alone,
    }


def figures(backend: str, device: str, shape: tuple[int, ...], batch_shape: tuple[int, ...]) -> dict:
    pred, target, ref = make_inputs(shape, device)
    logits, gradient = oracle(pred, target, ref)

    def off(values):
        return (values.double() - logits).abs().max().item()

    with set_backend(backend):
        ours, our_gradient = loss_and_gradient(pred, target, ref)
        start, _ = loss_and_gradient(pred, target, pred.clone())
        bits = same_bits(make_inputs(batch_shape, device))
    with set_backend("eager"):
        _, eager_gradient = loss_and_gradient(pred, target, ref)
    return {
        "logit_spread": (logits.max() - logits.min()).item(),
        "logit_error_ours": off(ours.logits),
        "logit_error_four_fp32_means": off(public_logits(pred, target, ref, torch.float32)),
        "logit_error_bf16_reference": off(public_logits(pred, target, ref, torch.bfloat16)),
        "gradient_error_ours": (our_gradient.double() - gradient).abs().max().item(),
        "gradient_error_eager": (eager_gradient.double() - gradient).abs().max().item(),
        "gradient_largest": gradient.abs().max().item(),
        "equal_weights_logits_zero": not start.logits.any().item(),
        "equal_weights_loss_is_ln2": start.loss.item() == torch.tensor(math.log(2)).item(),
        "bitwise_equal": bits,
    }


def failures(result: dict) -> list[str]:
    """The figures that miss what the op promises."""
    out = [name for name, value in result["bitwise_equal"].items() if not value]
    out += [name for name in ("equal_weights_logits_zero", "equal_weights_loss_is_ln2") if not result[name]]
    if result["logit_error_ours"] >= 1e-6:
        out.append("logit_error_ours")
    if result["gradient_error_ours"] > 2 * result["gradient_error_eager"]:
        out.append("gradient_error_ours")
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file; by default under benchmarks/results")
    arguments = parser.parse_args()
    device, shapes = ("cuda", ON_A_GPU) if torch.cuda.is_available() else ("cpu", ON_A_CPU)
    results = {backend: figures(backend, device, *shapes) for backend in ("eager", "triton")}
    for backend, result in results.items():
        print(f"\n{backend}")
        for name, value in result.items():
            print(f"  {name:30} {value}")
    print(write({"machine": machine(), "exactness": results}, "exactness", arguments.out))
    missed = {backend: failures(result) for backend, result in results.items()}
    print("missed:", {backend: names for backend, names in missed.items() if names} or "nothing")
    return int(any(missed.values()))


if __name__ == "__main__":
    raise SystemExit(main())
