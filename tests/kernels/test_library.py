"""The ops as citizens of PyTorch: opcheck, torch.compile, autocast, checkpointing, backends, and wrong use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kernel_inputs import DEVICE, make_pairs
from torch.utils.checkpoint import checkpoint

from pgdpo_kernels import (
    PairErrors,
    diffusion_dpo_loss,
    gate_residual,
    get_backend,
    noise_pair,
    norm_modulate,
    pair_errors,
    pair_noise,
    preference_loss,
    set_backend,
)

SHAPE = (4, 2, 4, 3, 5)
IDS = torch.tensor([1, 2], device=DEVICE)


def test_opcheck_pairs():
    """Two calls' numbers are alike to the bit. Gradients are of the `autograd.Function`s around the operators."""
    pred, target, ref = make_pairs(SHAPE, (torch.bfloat16, torch.float32, torch.float32))
    mask, ones, segments = torch.rand(2, 60, device=DEVICE), torch.ones(2, device=DEVICE), [0, 0, 1, 1]
    ops = torch.ops.pgdpo_kernels
    torch.library.opcheck(ops.pair_errors.default, (pred, target, ref, mask, segments, 2, True))
    torch.library.opcheck(ops.pair_errors.default, (pred, target, None, None, [], 0, False))
    errors = torch.rand(5, 2, 2, device=DEVICE)
    count, where = errors[2].contiguous(), (None, segments, 2)
    torch.library.opcheck(
        ops.pair_errors_backward.default,
        (errors, None, None, count, pred, target, None, *where, ones[0].clone(), ones),
    )
    numbers = [150.0, 1 / 600, 0.0, 1.0, 1e-6, 10.0, 1.0, 1.0, 1.0, 8.0, 0.5, 0.1]
    two = torch.rand(2, 2, 2, device=DEVICE)
    for extra in ((count, ones, ones, torch.ones(2, 2, device=DEVICE)), (None,) * 4):
        guard = "none" if extra[0] is None else "pair"
        torch.library.opcheck(
            ops.preference.default,
            (two, count, two + 1, *extra, "pg_dpo", True, "bt", True, True, guard, numbers),
        )


@pytest.mark.parametrize("triton", [False, True])
def test_opcheck_noise(triton):
    latents, level = make_pairs(SHAPE)[0], torch.rand(2, device=DEVICE)
    torch.library.opcheck(
        torch.ops.pgdpo_kernels.noise_pair.default, (latents, level, IDS, IDS, 5, "v", triton)
    )
    arguments = ([2, 9], IDS, IDS, 5, torch.bfloat16, triton)
    torch.library.opcheck(torch.ops.pgdpo_kernels.pair_noise.default, arguments)


def test_compiles_whole():
    """`aot_eager` traces the graph and its backward; the code generator is not what is tested."""

    def step(pred, latents, ref):
        noisy, target = noise_pair(
            latents, torch.full((2,), 0.5, device=DEVICE), seed=1, pair_ids=IDS, draw=3, prediction="flow"
        )
        result = diffusion_dpo_loss(pred * noisy, target, ref, beta=300.0, segment_labels=labels)
        errors = pair_errors(pred, target, ref, segments=(0, 1, 1, 0), cross=True)
        return result.loss + errors.drift_chosen.sum() + preference_loss(errors, beta=3.0).loss

    labels = torch.ones(2, 2, device=DEVICE)
    pred, latents, ref = make_pairs(SHAPE)
    outcomes = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        policy = pred.clone().requires_grad_()
        loss = function(policy, latents, ref)
        outcomes.append((loss, *torch.autograd.grad(loss, policy)))
    for eager, compiled in zip(*outcomes, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=1e-6, atol=1e-7)


def test_compiles_whole_for_a_beta_that_changes(backend):
    """From the second value on, dynamo takes a float for an unknown: no check may need to know it."""

    def step(pred, beta):
        limits = {"logit_cap": beta / 100, "chosen_pull": beta / 10}
        one = diffusion_dpo_loss(pred, target, ref, beta=beta, timestep_weight=weight, **limits)
        return one.loss + preference_loss(pair_errors(pred, target, ref), beta=beta, weight=weight).loss

    pred, target, ref = make_pairs(SHAPE)
    weight = torch.rand(2, device=DEVICE)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for beta in (1.0, 300.0, 5.0):
        policy = pred.clone().requires_grad_()
        (want, loss) = step(policy, beta), compiled(policy, beta)
        torch.testing.assert_close(loss, want, rtol=1e-6, atol=0)
        grads = (torch.autograd.grad(x, policy)[0] for x in (want, loss))
        torch.testing.assert_close(*grads, rtol=1e-6, atol=1e-9)


def test_a_second_derivative_is_refused_and_never_wrong(backend):
    """A penalty on the gradient's norm: the eager errors have a second derivative, the loss's slopes have none."""
    pred, target, ref = make_pairs(SHAPE)
    hidden = torch.randn(2, 4, 8, device=DEVICE, requires_grad=True)
    policy, scale = pred.clone().requires_grad_(), torch.ones(2, 1, 8, device=DEVICE, requires_grad=True)
    errors = pair_errors(policy, target, ref)
    outcomes = [
        (diffusion_dpo_loss(policy, target, ref, beta=3.0).loss, policy),
        (preference_loss(errors, beta=3.0).losses.sum(), policy),
    ]
    if backend == "triton":
        outcomes += [
            (errors.excess_chosen.sum(), policy),
            (gate_residual(hidden, hidden, scale).sum(), scale),
        ]
        outcomes += [(norm_modulate(hidden, scale, scale).square().sum(), hidden)]
    for loss, by in outcomes:
        (grad,) = torch.autograd.grad(loss, by, create_graph=True)
        with pytest.raises(RuntimeError, match="no gradient of their gradients"):
            torch.autograd.grad(grad.norm() + by.square().sum(), by)


def test_autocast_changes_nothing(backend):
    pred, target, ref = make_pairs(SHAPE, (torch.bfloat16, torch.float32, torch.bfloat16))
    plain = diffusion_dpo_loss(pred, target, ref, beta=5000.0)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        cast = diffusion_dpo_loss(pred, target, ref, beta=5000.0)
    assert cast.loss.dtype == torch.float32
    assert torch.equal(plain.loss, cast.loss)
    assert torch.equal(plain.logits, cast.logits)


def test_checkpointing_and_double_use(backend):
    pred, target, ref = make_pairs(SHAPE)

    def loss(x):
        return diffusion_dpo_loss(x, target, ref, beta=300.0).loss

    plain, checked, twice = (pred.clone().requires_grad_() for _ in range(3))
    loss(plain).backward()
    checkpoint(loss, checked, use_reentrant=False).backward()
    assert torch.equal(plain.grad, checked.grad)
    (loss(twice) + loss(twice)).backward()
    torch.testing.assert_close(twice.grad, 2 * plain.grad)
    assert torch.equal(target, make_pairs(SHAPE)[1])


def test_gradients_are_fresh_tensors(backend):
    """A backward in place would corrupt a gradient that something else shares."""
    pred, target, ref = make_pairs(SHAPE)
    policy = pred.clone().requires_grad_()
    loss = diffusion_dpo_loss(policy, target, ref, beta=300.0).loss
    upstream = torch.ones_like(loss)
    (grad,) = torch.autograd.grad(loss, policy, upstream)
    assert upstream.item() == 1
    assert torch.equal(policy, pred)
    assert grad.data_ptr() not in (pred.data_ptr(), policy.data_ptr(), target.data_ptr(), ref.data_ptr())


def test_the_backend_is_chosen_and_restored(monkeypatch):
    monkeypatch.setenv("PGDPO_KERNELS_BACKEND", "eager")
    assert get_backend() == "eager"
    with set_backend("triton"):
        assert get_backend() == "triton"
        with set_backend("auto"):
            assert get_backend() == "auto"
        assert get_backend() == "triton"
    assert get_backend() == "eager"
    monkeypatch.setenv("PGDPO_KERNELS_BACKEND", "fast")
    with pytest.raises(ValueError, match="PGDPO_KERNELS_BACKEND.*'fast'"):
        get_backend()
    with pytest.raises(ValueError, match="set_backend.*'cuda'"):
        set_backend("cuda")


def test_triton_says_why_it_cannot(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    pred, target, ref = (x.cpu() for x in make_pairs(SHAPE))
    with set_backend("triton"), pytest.raises(RuntimeError, match="pair_errors.*on cpu.*CUDA or HIP"):
        pair_errors(pred, target, ref)
    with set_backend("auto"):
        assert pair_errors(pred, target, ref).excess_chosen.isfinite().all()


def test_importing_asks_nothing_of_cuda_and_needs_no_triton():
    code = (
        "import sys, torch; sys.modules['triton'] = None\n"
        "torch.cuda._lazy_init = lambda: (_ for _ in ()).throw(RuntimeError('CUDA was asked for'))\n"
        "import pgdpo_kernels as k; x = torch.randn(2, 8)\n"
        "k.diffusion_dpo_loss(x, x + 1, x + 2, beta=1.0)"
    )
    kernels = str(Path(__file__).parents[2] / "kernels")
    environment = os.environ | {"PGDPO_KERNELS_BACKEND": "eager", "PYTHONPATH": kernels}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


PRED, TARGET, REF = make_pairs(SHAPE)
ONE = torch.ones(2, 1, device=DEVICE)
WRONG = {
    "odd batch": (lambda: pair_errors(PRED[:3], TARGET[:3]), ValueError, r"pred must be \[2B.*\(3, 2, 4"),
    "rank 1": (
        lambda: pair_errors(PRED[:, 0, 0, 0, 0], TARGET[:, 0, 0, 0, 0]),
        ValueError,
        r"rank 2.*\(4,\)",
    ),
    "no elements": (lambda: pair_errors(PRED[:, :0], TARGET[:, :0]), ValueError, "no elements"),
    "shape": (lambda: pair_errors(PRED, TARGET[:, :1]), ValueError, r"target.*\(4, 2, 4, 3, 5\).*\(4, 1, 4"),
    "integers": (lambda: pair_errors(PRED.long(), TARGET), TypeError, "pred must be bfloat16.*int64"),
    "float64": (lambda: pair_errors(PRED, TARGET.double()), TypeError, "target must be .*float64"),
    "no tensor": (lambda: pair_errors(PRED, 1.0), TypeError, "target must be a tensor, got float"),
    "segments": (lambda: pair_errors(PRED, TARGET, segments=3), ValueError, "segments=3.*4 frames"),
    "index": (lambda: pair_errors(PRED, TARGET, segments=[0, 1]), ValueError, r"4 frames, got \(0, 1\)"),
    "negative": (lambda: pair_errors(PRED, TARGET, segments=[0, 0, 0, -1]), ValueError, "0 or more"),
    "float index": (lambda: pair_errors(PRED, TARGET, segments=torch.ones(4)), TypeError, "float32"),
    "frame axis": (lambda: pair_errors(PRED, TARGET, segments=2, frame_dim=5), ValueError, "frame_dim 5"),
    "mask": (
        lambda: pair_errors(PRED, TARGET, mask=torch.ones_like(PRED)),
        ValueError,
        "mask must.*one half",
    ),
    "neither": (lambda: diffusion_dpo_loss(PRED, TARGET, beta=1.0), ValueError, "neither"),
    "both": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, ref_errors=torch.ones(4), beta=1.0),
        ValueError,
        "either ref_pred or ref_errors, got both",
    ),
    "excess alone": (
        lambda: pair_errors(PRED, TARGET, excess=torch.ones(4)),
        ValueError,
        "excess goes with ref_errors",
    ),
    "excess": (
        lambda: pair_errors(
            PRED, TARGET, ref_errors=torch.ones(4, device=DEVICE), excess=torch.ones(2, device=DEVICE)
        ),
        ValueError,
        r"excess must be .*\(4, 1\).*\(2,\)",
    ),
    "cache elsewhere": (
        lambda: pair_errors(PRED, TARGET, ref_errors=torch.ones(4, device="meta")),
        ValueError,
        "ref_errors is on meta, pred on",
    ),
    "shape by hand": (
        lambda: preference_loss(PairErrors(*[torch.ones(2)] * 6), beta=1.0),
        ValueError,
        r"errors.policy_chosen must be \[B, S\], got shape \(2,\)",
    ),
    "count by hand": (
        lambda: preference_loss(PairErrors(*[ONE] * 6, count=ONE.long()), beta=1.0),
        TypeError,
        "errors.count is torch.int64, errors.policy_chosen torch.float32",
    ),
    "switch": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, ipr_form="switch", ipr_weight=1.5),
        ValueError,
        "ipr_weight must be between 0 and 1 with ipr_form='switch', got 1.5",
    ),
    "weight of Python": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, weight=[1.0, 2.0]),
        TypeError,
        "weight must be a tensor, got list",
    ),
    "timestep weight": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, timestep_weight=torch.ones(4)),
        ValueError,
        r"timestep_weight must be \[B\] = \(2,\), got shape \(4,\)",
    ),
    "cached": (
        lambda: diffusion_dpo_loss(PRED, TARGET, ref_errors=torch.ones(2), beta=1.0),
        ValueError,
        r"ref_errors must be .*\(4, 1\).*\(2,\)",
    ),
    "labels": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, segment_labels=torch.ones(4, 2)),
        ValueError,
        r"segment_labels.*\(2, 2\).*\(4, 2\)",
    ),
    "weight": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, weight=torch.ones(4)),
        ValueError,
        r"weight must be \[B\] = \(2,\), got shape \(4,\)",
    ),
    "objective": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, objective="ppo"),
        ValueError,
        "objective must be one of.*'ppo'",
    ),
    "capped ipo": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, objective="ipo", logit_cap=8.0),
        ValueError,
        "logit_cap is not defined for ipo",
    ),
    "pulled ipo": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, objective="ipo", chosen_pull=0.0),
        ValueError,
        "chosen_pull is not defined for ipo",
    ),
    "a cap at zero": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, logit_cap=0.0),
        ValueError,
        "logit_cap must be a finite number above 0, got 0.0",
    ),
    "a push": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, chosen_pull=-0.1),
        ValueError,
        "chosen_pull must be a finite number of 0 or more, got -0.1",
    ),
    "smoothed ipo": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, objective="ipo", label_smoothing=0.1),
        ValueError,
        "label_smoothing is defined for dpo",
    ),
    "no excess": (
        lambda: preference_loss(PairErrors(torch.ones(2, 1), torch.ones(2, 1)), beta=1.0),
        ValueError,
        "no excess",
    ),
    "ids": (lambda: pair_noise((2, 4), seed=1, pair_ids=torch.ones(2), draw=0), TypeError, "int64.*float32"),
    "draw": (lambda: pair_noise((2, 4), seed=1, pair_ids=IDS, draw=IDS[:1]), ValueError, r"draw.*\(2,\)"),
    "ragged members": (
        lambda: noise_pair(PRED[:3], torch.ones(2), seed=1, pair_ids=IDS, draw=0, prediction="v"),
        ValueError,
        "latents must have K rows for each of the 2 pair_ids.*got 3 rows",
    ),
    "no ids": (
        lambda: noise_pair(PRED, torch.ones(2), seed=1, pair_ids=[1, 2], draw=0, prediction="v"),
        TypeError,
        "pair_ids must be int64, got list",
    ),
    "seed": (lambda: pair_noise((2, 4), seed=2**64, pair_ids=IDS, draw=0), ValueError, "64-bit"),
    "prediction": (
        lambda: noise_pair(PRED, torch.ones(2), seed=1, pair_ids=IDS, draw=0, prediction="x0"),
        ValueError,
        "prediction must be one of.*'x0'",
    ),
    "level": (
        lambda: noise_pair(PRED, torch.ones(4), seed=1, pair_ids=IDS, draw=0, prediction="v"),
        ValueError,
        r"level.*\(2,\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_named(name, backend):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_beta_must_be_positive_and_finite(beta, backend):
    with pytest.raises(ValueError, match="beta must be a finite number above 0"):
        diffusion_dpo_loss(PRED, TARGET, REF, beta=beta)
