"""A cap on the logit and a pull on the chosen: what they take and what they leave."""

import math

import pytest
import torch
from kernel_inputs import DEVICE, make_pairs

from pgdpo_kernels import PairErrors, diffusion_dpo_loss, preference_loss

pytestmark = pytest.mark.quick

KAPPA, CAP, PULL = 25.0, 8.0, 0.3


def errors_at(logits: list[float]) -> tuple[PairErrors, torch.Tensor, torch.Tensor]:
    """Pairs with these logits of `dpo`, and the excess of their chosen and rejected: a third, two thirds of each."""
    margins = torch.tensor(logits, device=DEVICE)[:, None] / KAPPA
    chosen, rejected = (-margins / 3).requires_grad_(), (margins * 2 / 3).requires_grad_()
    one = torch.ones_like(margins)
    return PairErrors(one, one, one, one, chosen, rejected), chosen, rejected


def losses_and_slopes(logits, **options):
    errors, chosen, rejected = errors_at(logits)
    result = preference_loss(errors, beta=2 * KAPPA, **options)
    return result, *(x[:, 0] for x in torch.autograd.grad(result.losses.sum(), (chosen, rejected)))


@pytest.mark.parametrize("objective", ["dpo", "hinge"])
def test_above_the_cap_the_value_is_that_at_the_cap_and_no_gradient(objective, backend):
    cap = CAP if objective == "dpo" else 0.5
    logits = [-1.0, cap - 0.1, cap + 0.1, math.inf, math.nan]
    capped, *slopes = losses_and_slopes(logits, objective=objective, logit_cap=cap)
    plain, *plain_slopes = losses_and_slopes(logits, objective=objective)
    at_cap = math.log1p(math.exp(-cap)) if objective == "dpo" else 1 - cap
    assert torch.equal(capped.losses[:2], plain.losses[:2])
    assert capped.losses[2:4].tolist() == pytest.approx([at_cap] * 2, rel=1e-4)
    assert capped.losses[4].isnan()
    assert torch.equal(capped.logits[:4], plain.logits[:4])  # as they are
    for found, wanted in zip(slopes, plain_slopes, strict=True):
        assert torch.equal(found[:2], wanted[:2]) and found[:2].all()
        assert found[2:4].tolist() == [0.0, 0.0]


def test_the_second_term_of_pg_dpo_goes_on_above_the_cap(backend):
    """Its value and slope by the chosen, by hand: gate * l(kappa r_w), the gate of the uncapped logit."""
    options = {"ars_k": None, "ipr_threshold": 8.0, "logit_cap": CAP}
    result, chosen, rejected = losses_and_slopes([8.5, 12.0], **options)
    for pair, logit in enumerate((8.5, 12.0)):
        gate, kept = 1 / (1 + math.exp(8.0 - logit)), 1 / (1 + math.exp(logit / 3))
        loss = math.log1p(math.exp(-CAP)) + gate * -math.log(1 - kept)
        assert result.losses[pair].item() == pytest.approx(loss, rel=1e-5)
        assert chosen[pair].item() == pytest.approx(gate * KAPPA * kept, rel=1e-5)
        assert rejected[pair].item() == 0.0


def test_the_pull_is_on_the_better_side_alone_and_in_units_of_kappa(backend):
    """Also above the cap, and times omega; a tie has none."""
    errors, _, _ = errors_at([-1.0, 9.0])
    labels = torch.tensor([[1.0, -1.0, 0.0]] * 2, device=DEVICE)
    three = [x.detach().expand(2, 3).clone().requires_grad_() for x in vars(errors).values() if x is not None]
    omega = torch.tensor([0.5, 2.0], device=DEVICE)
    given = {"beta": 2 * KAPPA, "objective": "dpo", "logit_cap": CAP, "segment_labels": labels}
    given |= {"timestep_weight": omega}
    found = []
    for more in ({}, {"chosen_pull": PULL}):
        losses = preference_loss(PairErrors(*three), **given, **more).losses
        found.append((losses.detach(), *torch.autograd.grad(losses.sum(), three[4:])))
    (plain, *plain_slopes), (pulled, *slopes) = found
    better = three[4][:, 0] + three[5][:, 1]
    torch.testing.assert_close(pulled - plain, PULL * KAPPA * omega * better.detach(), rtol=1e-5, atol=1e-6)
    for side, column in ((0, 0), (1, 1)):
        wanted = torch.zeros(2, 3, device=DEVICE)
        wanted[:, column] = PULL * KAPPA * omega
        torch.testing.assert_close(slopes[side] - plain_slopes[side], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", ["dpo", "hinge", "pg_dpo"])
def test_far_limits_are_none_to_the_bit(objective, backend):
    pred, target, ref = make_pairs((6, 2, 4, 5, 6))
    found = []
    for limits in ({}, {"logit_cap": 1e6, "chosen_pull": 0.0}):
        policy = pred.clone().requires_grad_()
        result = diffusion_dpo_loss(policy, target, ref, beta=300.0, objective=objective, **limits)
        found.append((result.loss, result.losses, *torch.autograd.grad(result.loss, policy)))
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


def test_a_fresh_policy_loses_what_it_lost(backend):
    """ln 2 to the bit, and the first step's pull on the chosen is (1/2 + chosen_pull) kappa."""
    pred, target, _ = make_pairs((8, 3, 4, 9, 9))
    result = diffusion_dpo_loss(
        pred, target, pred.clone(), beta=2 * KAPPA, objective="dpo", logit_cap=CAP, chosen_pull=0.5
    )
    assert result.loss.item() == torch.tensor(math.log(2)).item()
    torch.testing.assert_close(result.slope_chosen, torch.full_like(result.slope_chosen, KAPPA / 4))
    torch.testing.assert_close(result.slope_rejected, torch.full_like(result.slope_rejected, -KAPPA / 8))
