"""`diffusion_dpo_loss` and `preference_loss` on both backends: values, gradients, exactness, what stays detached."""

import math

import kernel_oracle as oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import DEVICE, make_pairs

from pgdpo_kernels import (
    PairErrors,
    diffusion_dpo_loss,
    mean_loss,
    pair_errors,
    preference_loss,
    set_backend,
)

pytestmark = pytest.mark.quick

SHAPE = (6, 2, 4, 5, 6)
OMEGA = torch.tensor([0.3, 1.0, 2.5], device=DEVICE)
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
    "pg_dpo switch": (
        {"ipr_form": "switch", "ipr_sharpness": 0.7, "ipr_weight": 0.8, "ars_eps": 1e-3},
        {"ars": (1, 1e-3, 10), "ipr": (0.8, 0.7, 1, "switch")},
    ),
    "limited": (
        {"objective": "dpo", "label_smoothing": 0.1, "weight": WEIGHT, "logit_cap": 0.05, "chosen_pull": 0.4},
        {"smoothing": 0.1, "cap": 0.05, "pull": 0.4},
    ),
    "pg_dpo limited": (
        {"logit_cap": 0.05, "chosen_pull": 0.4},
        {"ars": (1, 1e-6, 10), "ipr": (1, 1, 1, "bt"), "cap": 0.05, "pull": 0.4},
    ),
    "ars alone": ({"ipr_weight": 0.0}, {"ars": (1, 1e-6, 10)}),
}


@pytest.mark.parametrize(
    ("labels", "omega"), [(None, None), (LABELS, OMEGA)], ids=["whole", "segments, timestep weights"]
)
@pytest.mark.parametrize("case", CASES)
def test_values(backend, case, labels, omega):
    ours, theirs = CASES[case]
    pred, target, ref = make_pairs(SHAPE)
    extra = {"segment_labels": labels, "timestep_weight": omega}
    result = diffusion_dpo_loss(pred, target, ref, beta=300.0, **extra, **ours)
    index = None if labels is None else [0, 0, 1, 1]
    errors = oracle.pair_errors(pred.cpu(), target.cpu(), ref.cpu(), index)
    weight = ours["weight"].cpu() if "weight" in ours else None
    labels = None if labels is None else labels.cpu().numpy()
    omega = None if omega is None else omega.cpu()
    losses, logits = oracle.preference(errors, 300.0, weight=weight, labels=labels, omega=omega, **theirs)
    np.testing.assert_allclose(
        result.implicit_reward_chosen.cpu(), -oracle.sides(errors, labels)[0], rtol=2e-5
    )
    np.testing.assert_allclose(result.logits.cpu(), logits, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(result.losses.cpu(), losses, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(result.loss.item(), losses.mean(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "omega"), [(None, None), (LABELS, OMEGA)], ids=["whole", "segments, timestep weights"]
)
@pytest.mark.parametrize("case", CASES)
def test_gradient_by_finite_differences(backend, case, labels, omega):
    """Along a random direction, of the float64 oracle with alpha and gate held where they are detached."""
    ours, theirs = CASES[case]
    pred, target, ref = make_pairs(SHAPE, seed=3)
    direction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    policy = pred.clone().requires_grad_()
    extra = {"segment_labels": labels, "timestep_weight": omega}
    result = diffusion_dpo_loss(policy, target, ref, beta=300.0, **extra, **ours)
    (grad,) = torch.autograd.grad(result.loss, policy)
    omega = None if omega is None else omega.cpu()
    weight = ours["weight"].cpu() if "weight" in ours else None
    alpha, gate = oracle.array(result.ars_alpha.cpu()), oracle.array(result.ipr_gate.cpu())

    def loss(step):
        moved = pred.double().cpu() + step * direction.double().cpu()
        index = None if labels is None else [0, 0, 1, 1]
        errors = oracle.pair_errors(moved, target.cpu(), ref.cpu(), index)
        signs = None if labels is None else labels.cpu().numpy()
        extra = {"weight": weight, "labels": signs, "omega": omega}
        return oracle.frozen_preference(errors, 300.0, alpha, gate, **extra, **theirs)

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
    for known in (stacked, stacked[:, 0]):
        result = diffusion_dpo_loss(policy, target, ref_errors=known, beta=50.0)
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


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_one_op_or_two_have_the_same_bits(case, data):
    """Loss, numbers and gradient, whatever is given and however the loss is scaled from above."""
    options = CASES[case][0] | {"beta": data.draw(st.sampled_from([3.0, 300.0, 5000.0]), "beta")}
    options.pop("weight", None)
    pairs, frames, seed = (data.draw(st.integers(1, 5), name) for name in ("pairs", "frames", "seed"))
    pred, target, ref = make_pairs((2 * pairs, 2, frames, 3, 3), seed=seed)
    random = torch.Generator().manual_seed(seed)
    flags = {
        name: data.draw(st.booleans(), name)
        for name in ("mask", "labels", "weight", "omega", "cached", "excess")
    }
    where = {"segments": data.draw(st.sampled_from([None, 1, frames]), "segments")}
    if flags["mask"]:
        where["mask"] = torch.rand(pairs, frames, generator=random).round(decimals=1).to(DEVICE)
    count = where["segments"] or 1  # one segment and None are the same
    if flags["labels"]:
        options["segment_labels"] = torch.randint(-1, 2, (pairs, count), generator=random).to(DEVICE)
    for name, key in (("weight", "weight"), ("omega", "timestep_weight")):
        if flags[name]:
            options[key] = torch.rand(pairs, generator=random).to(DEVICE)
    against = {"ref_pred": ref}
    if flags["cached"]:
        known = pair_errors(ref, target, **where)
        against = {"ref_errors": torch.cat((known.policy_chosen, known.policy_rejected))}
        if flags["excess"]:
            against["excess"] = torch.randn(2 * pairs, count, generator=random).to(DEVICE) * 1e-3
    for backend in ("eager", "triton"):
        with set_backend(backend):
            found = []
            for two in (False, True):
                policy = pred.clone().requires_grad_()
                if two:
                    result = preference_loss(pair_errors(policy, target, **against, **where), **options)
                    assert torch.equal(result.loss, mean_loss(result.losses))
                else:
                    result = diffusion_dpo_loss(policy, target, **against, **where, **options)
                (grad,) = torch.autograd.grad(result.loss / 3, policy)
                numbers = [x for name, x in vars(result).items() if name not in ("errors", "loss")]
                errors = [x for x in vars(result.errors).values() if x is not None]
                found.append((result.loss, grad, *numbers, *errors))
            assert all(torch.equal(*both) for both in zip(*found, strict=True))


def test_a_weight_in_the_loss_or_on_the_losses(backend):
    """As an objective has it: the same bits, and the slopes that are told are the gradient by the errors."""
    pred, target, ref = make_pairs(SHAPE)
    policy = pred.clone().requires_grad_()
    fused = diffusion_dpo_loss(policy, target, ref, beta=300.0, weight=WEIGHT, ipr_form="sft")
    (want,) = torch.autograd.grad(fused.loss, policy)
    errors = pair_errors(policy, target, ref)
    fields = (errors.policy_chosen, errors.excess_chosen, errors.policy_rejected, errors.excess_rejected)
    loss = mean_loss(preference_loss(errors, beta=300.0, ipr_form="sft").losses * WEIGHT)
    assert torch.equal(loss, fused.loss)
    by_policy, by_excess, *_, by_rejected = torch.autograd.grad(loss, fields, retain_graph=True)
    assert torch.equal(by_policy + by_excess, fused.slope_chosen)
    assert torch.equal(by_rejected, fused.slope_rejected)
    assert torch.equal(torch.autograd.grad(loss, policy)[0], want)


LN2 = torch.tensor(math.log(2), dtype=torch.float32).item()


def test_a_fresh_batch_of_any_size_loses_ln2():
    """A sum in fp32 misses it by an ulp at B = 13."""
    for pairs in range(1, 4097):
        losses = torch.full((pairs,), LN2)
        assert mean_loss(losses).item() == LN2, pairs
    errors = torch.zeros(5, 1, device=DEVICE)
    for pairs in (*range(1, 141), 1000, 4096):
        zero = errors[:1].expand(pairs, 1)
        fresh = PairErrors(zero + 0.1, zero + 0.1, zero + 0.1, zero + 0.1, zero, zero)
        for backend in ("eager", "triton"):
            with set_backend(backend):
                assert preference_loss(fresh, beta=5000.0, objective="dpo").loss.item() == LN2, (
                    pairs,
                    backend,
                )


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_policy_beside_a_sound_excess_is_told(backend, bad):
    """The caller's excess is of another sum: no finite loss may hide that the policy's error is none."""
    pred, target, _ = make_pairs(SHAPE)
    pred[0, 0, 0, 0, 0] = bad
    known = {"ref_errors": torch.ones(6, device=DEVICE), "excess": torch.full((6,), 1e-3, device=DEVICE)}
    two = preference_loss(pair_errors(pred, target, **known), beta=300.0)
    for result in (diffusion_dpo_loss(pred, target, **known, beta=300.0), two):
        assert result.losses.isfinite().tolist() == [False, True, True]
        assert not result.errors.excess_chosen[0].isfinite()


def test_a_safeguard_that_is_not_a_number_is_told(backend):
    one = torch.ones(2, 1, device=DEVICE, requires_grad=True)
    cross = torch.tensor([[float("nan")], [0.5]], device=DEVICE)
    for scope, told in (("pair", [[True], [False]]), ("batch", [[True], [True]])):
        loss = preference_loss(
            PairErrors(one, one, one, one, 0.1 * one, 0.2 * one, cross=cross),
            beta=3.0,
            safeguard_mu=0.5,
            safeguard_scope=scope,
        ).loss
        assert torch.autograd.grad(loss, one)[0].isnan().tolist() == told


def test_a_weight_of_any_dtype_is_one_weight(backend):
    pred, target, ref = make_pairs(SHAPE)
    found = []
    for weight in (torch.tensor([0.1, 2.3, 1.7]), torch.tensor([0.1, 2.3, 1.7], dtype=torch.float64)):
        weights = dict.fromkeys(("weight", "timestep_weight"), weight.to(DEVICE))
        for two in (False, True):
            policy = pred.clone().requires_grad_()
            if two:
                result = preference_loss(pair_errors(policy, target, ref), beta=300.0, **weights)
            else:
                result = diffusion_dpo_loss(policy, target, ref, beta=300.0, **weights)
            found.append((result.loss, *torch.autograd.grad(result.loss / 3, policy)))
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0])
        assert torch.equal(other[1], found[0][1])
