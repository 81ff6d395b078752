"""`diffusion_dpo_loss` and `preference_loss` on both backends: values, gradients, exactness, what stays detached."""

import math

import kernel_oracle as oracle
import numpy as np
import pytest
import torch
from kernel_inputs import DEVICE, make_pairs

from pgdpo_kernels import diffusion_dpo_loss, pair_errors, preference_loss, set_backend

pytestmark = pytest.mark.quick

SHAPE = (6, 2, 4, 5, 6)
LABELS = torch.tensor([[1, 1], [-1, 1], [0, -1]], device=DEVICE)
WEIGHT = torch.tensor([0.5, 2.0, 1.0], device=DEVICE)
OFF = {"ars_k": None, "ipr_weight": 0.0}

CASES = {
    "dpo": ({"objective": "dpo"}, {}),
    "smoothed": ({"objective": "dpo", "label_smoothing": 0.1, "weight": WEIGHT}, {"smoothing": 0.1}),
    "ipo": ({"objective": "ipo"}, {"objective": "ipo"}),
    "hinge": ({"objective": "hinge", "weight": WEIGHT}, {"objective": "hinge"}),
    "pg_dpo": ({}, {"ars": (1, 1e-6, 10), "ipr": (1, 1, 1, "bt")}),
    "pg_dpo hinge": (
        {"ars_k": 0.5, "ars_eps": 1e-3, "ars_clip": 0.7, "ipr_form": "hinge", "ipr_weight": 0.3},
        {"ars": (0.5, 1e-3, 0.7), "ipr": (0.3, 1, 1, "hinge")},
    ),
    "pg_dpo sft": (
        {"ipr_form": "sft", "ipr_sharpness": 2.0, "ipr_threshold": -1.0, "weight": WEIGHT},
        {"ars": (1, 1e-6, 10), "ipr": (1, 2, -1, "sft")},
    ),
    "ars alone": ({"ipr_weight": 0.0}, {"ars": (1, 1e-6, 10)}),
}


@pytest.mark.parametrize("labels", [None, LABELS], ids=["whole", "segments"])
@pytest.mark.parametrize("case", CASES)
def test_values(backend, case, labels):
    ours, theirs = CASES[case]
    pred, target, ref = make_pairs(SHAPE)
    result = diffusion_dpo_loss(pred, target, ref, beta=300.0, segment_labels=labels, **ours)
    index = None if labels is None else [0, 0, 1, 1]
    errors = oracle.pair_errors(pred.cpu(), target.cpu(), ref.cpu(), index)
    weight = ours["weight"].cpu() if "weight" in ours else None
    labels = None if labels is None else labels.cpu().numpy()
    losses, logits = oracle.preference(errors, 300.0, weight=weight, labels=labels, **theirs)
    np.testing.assert_allclose(result.logits.cpu(), logits, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(result.losses.cpu(), losses, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(result.loss.item(), losses.mean(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("labels", [None, LABELS], ids=["whole", "segments"])
@pytest.mark.parametrize("case", CASES)
def test_gradient_by_finite_differences(backend, case, labels):
    """Along a random direction, of the float64 oracle with alpha and gate held where they are detached."""
    ours, theirs = CASES[case]
    pred, target, ref = make_pairs(SHAPE, seed=3)
    direction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    policy = pred.clone().requires_grad_()
    result = diffusion_dpo_loss(policy, target, ref, beta=300.0, segment_labels=labels, **ours)
    (grad,) = torch.autograd.grad(result.loss, policy)
    weight = ours["weight"].cpu() if "weight" in ours else None
    alpha, gate = oracle.array(result.ars_alpha.cpu()), oracle.array(result.ipr_gate.cpu())

    def loss(step):
        moved = pred.double().cpu() + step * direction.double().cpu()
        index = None if labels is None else [0, 0, 1, 1]
        errors = oracle.pair_errors(moved, target.cpu(), ref.cpu(), index)
        signs = None if labels is None else labels.cpu().numpy()
        return oracle.frozen_preference(errors, 300.0, alpha, gate, weight=weight, labels=signs, **theirs)

    step = 1e-6
    want = (loss(step) - loss(-step)) / (2 * step)
    got = (grad.double() * direction.double()).sum().item()
    assert got == pytest.approx(want, rel=2e-4, abs=1e-8)


def test_equal_weights_give_zero_and_ln2(backend):
    pred, target, _ = make_pairs((8, 3, 4, 9, 9), (torch.bfloat16,) * 3)
    result = diffusion_dpo_loss(pred, target, pred.clone(), beta=5000.0, objective="dpo")
    assert torch.equal(result.logits, torch.zeros_like(result.logits))
    assert result.loss.item() == torch.tensor(math.log(2)).item()
    start = diffusion_dpo_loss(pred, target, pred.clone(), beta=5000.0)
    assert torch.equal(start.ars_alpha, torch.full_like(start.ars_alpha, 0.5))
    assert torch.equal(start.logits, torch.zeros_like(start.logits))


def test_pg_dpo_without_its_terms_is_dpo_to_the_bit(backend):
    pred, target, ref = make_pairs(SHAPE)
    results = []
    for options in ({"objective": "dpo"}, {"objective": "pg_dpo", **OFF}):
        policy = pred.clone().requires_grad_()
        result = diffusion_dpo_loss(policy, target, ref, beta=5000.0, **options)
        results.append((result.loss, result.logits, *torch.autograd.grad(result.loss, policy)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_logits_at_beta_5000_are_exact(backend):
    pred, target, ref = make_pairs((4, 16, 5, 40, 40), (torch.bfloat16,) * 3, distance=1e-3)
    result = diffusion_dpo_loss(pred, target, ref, beta=5000.0, objective="dpo")
    errors = oracle.pair_errors(pred.cpu(), target.cpu(), ref.cpu())
    _, logits = oracle.preference(errors, 5000.0)
    assert np.abs(oracle.array(result.logits.cpu()) - logits).max() < 1e-6
    assert np.abs(logits).max() > 1e-3


def test_bits_alone_and_in_a_batch_of_64(backend):
    pred, target, ref = make_pairs((128, 2, 2, 30, 40), (torch.bfloat16,) * 3)
    runs = [diffusion_dpo_loss(pred, target, ref, beta=5000.0) for _ in range(2)]
    assert torch.equal(runs[0].loss, runs[1].loss)
    for pair in (0, 40, 63):
        alone = diffusion_dpo_loss(*(x[[pair, pair + 64]] for x in (pred, target, ref)), beta=5000.0)
        assert torch.equal(alone.logits, runs[0].logits[pair : pair + 1])
        assert torch.equal(alone.losses, runs[0].losses[pair : pair + 1])


def test_cached_reference_errors(backend):
    pred, target, ref = make_pairs(SHAPE)
    cache = pair_errors(ref, target)
    stacked = torch.cat((cache.policy_chosen, cache.policy_rejected))
    policy = pred.clone().requires_grad_()
    full = diffusion_dpo_loss(policy, target, ref, beta=50.0)
    (want,) = torch.autograd.grad(full.loss, policy)
    for given in (stacked, stacked[:, 0]):
        result = diffusion_dpo_loss(policy, target, ref_errors=given, beta=50.0)
        assert result.errors.drift_chosen is None
        torch.testing.assert_close(result.logits, full.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(result.errors.ref_chosen, cache.policy_chosen)
        torch.testing.assert_close(torch.autograd.grad(result.loss, policy)[0], want, rtol=1e-3, atol=1e-7)


def test_mask_weights_the_errors(backend):
    pred, target, ref = make_pairs(SHAPE)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.5], device=DEVICE)
    result = diffusion_dpo_loss(pred, target, ref, beta=300.0, mask=mask, objective="dpo")
    errors = oracle.pair_errors(pred.cpu(), target.cpu(), ref.cpu(), mask=mask.cpu().reshape(1, 1, 4, 1, 1))
    np.testing.assert_allclose(result.logits.cpu(), oracle.preference(errors, 300.0)[1], rtol=1e-4)


def test_a_zero_weight_segment_drops_out(backend):
    pred, target, ref = make_pairs(SHAPE)
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0], device=DEVICE)
    labels = torch.tensor([[1, -1]] * 3, device=DEVICE)
    policy = pred.clone().requires_grad_()
    result = diffusion_dpo_loss(policy, target, ref, beta=300.0, mask=mask, segment_labels=labels)
    first = torch.tensor([[1, 0]] * 3, device=DEVICE)
    same = diffusion_dpo_loss(pred, target, ref, beta=300.0, mask=mask, segment_labels=first)
    assert torch.equal(result.losses, same.losses)
    (grad,) = torch.autograd.grad(result.loss, policy)
    assert grad.isfinite().all()
    assert not grad[:, :, 2:].any()


def test_all_ties_give_ln2_and_no_gradient(backend):
    pred, target, ref = make_pairs(SHAPE)
    labels = torch.zeros(3, 2, device=DEVICE)
    policy = pred.requires_grad_()
    result = diffusion_dpo_loss(policy, target, ref, beta=300.0, segment_labels=labels, objective="dpo")
    assert result.loss.item() == torch.tensor(math.log(2)).item()
    assert not torch.autograd.grad(result.loss, policy)[0].any()


def test_the_safeguard_scales_the_rejected_gradient_alone(backend):
    pred, target, ref = make_pairs(SHAPE)
    # Residuals that point the same way: their inner product is positive, and the scale below one.
    pred[3:] = target[3:] + 2.0 * (pred - target)[:3]
    grads = []
    for mu in (None, 0.9):
        policy = pred.clone().requires_grad_()
        result = diffusion_dpo_loss(policy, target, ref, beta=30.0, objective="dpo", safeguard_mu=mu)
        grads.append((result.loss.item(), torch.autograd.grad(result.loss, policy)[0]))
    (loss, plain), (same_loss, guarded) = grads
    assert loss == same_loss
    assert torch.equal(plain[:3], guarded[:3])
    # C = 2 E_pw, so that the scale is (1 - 0.9) / 2.
    torch.testing.assert_close(guarded[3:], 0.05 * plain[3:], rtol=1e-4, atol=0)


def test_the_safeguard_lets_opposed_residuals_be(backend):
    pred, target, ref = make_pairs(SHAPE)
    pred[3:] = target[3:] - 2.0 * (pred - target)[:3]
    grads = []
    for mu in (None, 0.9):
        policy = pred.clone().requires_grad_()
        loss = diffusion_dpo_loss(policy, target, ref, beta=30.0, objective="dpo", safeguard_mu=mu).loss
        grads.append(torch.autograd.grad(loss, policy)[0])
    assert torch.equal(*grads)


def test_the_gradient_scales_with_what_comes_from_above(backend):
    """Loss scaling and gradient accumulation multiply the loss."""
    pred, target, ref = make_pairs(SHAPE)
    policy = pred.requires_grad_()
    loss = diffusion_dpo_loss(policy, target, ref, beta=300.0).loss
    (plain,) = torch.autograd.grad(loss, policy, retain_graph=True)
    (scaled,) = torch.autograd.grad(loss * 1024, policy)
    assert torch.equal(scaled, 1024 * plain)


def test_only_the_loss_carries_a_gradient(backend):
    pred, target, ref = make_pairs(SHAPE)
    result = diffusion_dpo_loss(pred.requires_grad_(), target, ref, beta=300.0)
    assert result.loss.requires_grad
    tensors = [value for key, value in vars(result).items() if key not in ("loss", "errors")]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert not result.errors.excess_chosen.requires_grad


def test_preference_loss_on_pair_errors_is_the_same(backend):
    pred, target, ref = make_pairs(SHAPE)
    policy = pred.clone().requires_grad_()
    fused = diffusion_dpo_loss(policy, target, ref, beta=300.0)
    errors = pair_errors(policy, target, ref)
    staged = preference_loss(errors, beta=300.0)
    torch.testing.assert_close(fused.loss, staged.loss, rtol=1e-6, atol=1e-7)
    fused_grad, staged_grad = (torch.autograd.grad(result.loss, policy)[0] for result in (fused, staged))
    torch.testing.assert_close(fused_grad, staged_grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_pair_stays_alone(backend, bad):
    pred, target, ref = make_pairs(SHAPE)
    clean = diffusion_dpo_loss(pred, target, ref, beta=300.0)
    broken = pred.clone()
    broken[1, 0, 0, 0, 0] = bad
    result = diffusion_dpo_loss(broken.requires_grad_(), target, ref, beta=300.0)
    assert torch.equal(result.losses[[0, 2]], clean.losses[[0, 2]])
    assert torch.equal(result.ars_alpha[[0, 2]], clean.ars_alpha[[0, 2]])
    assert not result.losses[1].isfinite()
    (grad,) = torch.autograd.grad(result.loss, broken)
    assert grad[[0, 2, 3, 5]].isfinite().all()


def test_three_launches_forward_and_one_backward(monkeypatch):
    """Counted at the one door that every launch goes through."""
    from pgdpo_kernels.pairs.dpo_kernel import preference_stage

    launches = []
    kind = type(preference_stage)
    launch = kind.__getitem__
    monkeypatch.setattr(kind, "__getitem__", lambda self, grid: launches.append(grid) or launch(self, grid))
    pred, target, ref = make_pairs(SHAPE)
    with set_backend("triton"):
        result = diffusion_dpo_loss(pred.requires_grad_(), target, ref, beta=300.0, segment_labels=LABELS)
        assert len(launches) == 3
        result.loss.backward()
        assert len(launches) == 4
