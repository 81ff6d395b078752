"""Published preference losses, restated as their authors' code computes them, come out of our op; their defects don't.

Errors below are means over all but the batch axis, of fp32 tensors. A public trainer's beta becomes ours by
kappa = beta_ours / 2.
"""

import pytest
import torch
from kernel_inputs import DEVICE, make_pairs
from torch.nn.functional import logsigmoid, relu

from pgdpo_kernels import PairErrors, diffusion_dpo_loss, noise_pair, pair_errors, preference_loss

SHAPE = (8, 4, 3, 6, 5)


def four_errors(pred, target, ref):
    policy, reference = (((x - target) ** 2).flatten(1).mean(1).chunk(2) for x in (pred, ref))
    return policy, reference


def difference(pred, target, ref):
    """(E_pw - E_pl) - (E_rw - E_rl)"""
    (pw, pl), (rw, rl) = four_errors(pred, target, ref)
    return (pw - pl) - (rw - rl)


def diffusion_dpo(pred, target, ref, beta):
    """SalesforceAIResearch/DiffusionDPO, train.py, and the SDXL script of diffusers."""
    return -logsigmoid(-0.5 * beta * difference(pred, target, ref)).mean()


def diffusers_sd15(pred, target, ref, beta, form="sigmoid"):
    """diffusers' train_diffusion_dpo.py: no half in front of beta."""
    logits = -beta * difference(pred, target, ref)
    return (-logsigmoid(logits) if form == "sigmoid" else relu(1 - logits)).mean()


def diffusion_sdpo(pred, target, ref, beta, mu):
    """AIDC-AI/Diffusion-SDPO, train.py: one scale per micro-batch, on the rejected error's gradient."""
    residual_w, residual_l = (pred - target).detach().chunk(2)
    inner = (residual_w * residual_l).mean()
    scale = 1.0 if inner <= 0 else ((1 - mu) * residual_w.square().mean() / inner).clamp(0, 1)
    (pw, pl), (rw, rl) = four_errors(pred, target, ref)
    scaled = pl.detach() + scale * (pl - pl.detach())
    return -logsigmoid(-0.5 * beta * ((pw - scaled) - (rw - rl))).mean()


def summed(pred, target, ref, beta):
    """SimpleTuner's default: errors are sums, and no half."""
    n = pred[0].numel()
    return -logsigmoid(-beta * n * difference(pred, target, ref)).mean()


N = 4 * 3 * 6 * 5
PUBLISHED = {
    "DiffusionDPO, SDXL of diffusers": (lambda *x: diffusion_dpo(*x, 5000.0), {"beta": 5000.0}),
    "diffusers SD1.5": (lambda *x: diffusers_sd15(*x, 2500.0), {"beta": 5000.0}),
    "diffusers SD1.5 hinge": (
        lambda *x: diffusers_sd15(*x, 2500.0, "hinge"),
        {"beta": 5000.0, "objective": "hinge"},
    ),
    "flow_grpo, Flow-Factory": (lambda *x: diffusion_dpo(*x, 100.0), {"beta": 100.0}),
    "LongCat-Image": (lambda *x: diffusers_sd15(*x, 2000.0), {"beta": 4000.0}),
    "SimpleTuner": (lambda *x: summed(*x, 0.05), {"beta": 2 * 0.05 * N}),
    "Diffusion-SDPO": (
        lambda *x: diffusion_sdpo(*x, 500.0, 0.9),
        {"beta": 500.0, "safeguard_mu": 0.9, "safeguard_scope": "batch"},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_loss_and_gradient(name, backend):
    theirs, ours = PUBLISHED[name]
    pred, target, ref = make_pairs(SHAPE, distance=0.02)
    if "safeguard_mu" in ours:  # residuals that point the same way, or the safeguard has nothing to do
        pred[4:] = target[4:] + 1.5 * (pred - target)[:4]
    grads, losses = [], []
    for loss in (theirs, lambda *x: diffusion_dpo_loss(*x, **{"objective": "dpo"} | ours).loss):
        policy = pred.clone().requires_grad_()
        losses.append(loss(policy, target, ref))
        grads.append(torch.autograd.grad(losses[-1], policy)[0])
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    # The public formulas lose digits in the difference of four means: hence the tolerance.
    torch.testing.assert_close(*grads, rtol=2e-3, atol=1e-3 * grads[0].abs().max().item())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_trl_on_the_same_log_ratios(smoothing, backend):
    """TRL's sigmoid, ipo and hinge: h is the difference of log ratios, ours the difference of implicit rewards."""
    chosen, rejected = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    errors = PairErrors(
        *[torch.ones(6, 1, device=DEVICE)] * 2,
        excess_chosen=-chosen[:, None],
        excess_rejected=-rejected[:, None],
    )
    h, beta = chosen - rejected, 0.3
    sigmoid = -logsigmoid(beta * h) * (1 - smoothing) - logsigmoid(-beta * h) * smoothing
    result = preference_loss(errors, beta=2 * beta, objective="dpo", label_smoothing=smoothing)
    torch.testing.assert_close(result.losses, sigmoid)
    hinge = preference_loss(errors, beta=2 * beta, objective="hinge")
    torch.testing.assert_close(hinge.losses, relu(1 - beta * h))
    ipo = preference_loss(errors, beta=beta, objective="ipo")
    torch.testing.assert_close(ipo.losses, (h - 1 / (2 * beta)) ** 2)


def test_real_dpo_in_sample_space_is_an_error_weight(backend):
    """RealDPO measures errors of the clean sample, weighted by 1 / (1 - alpha_bar): ours, by a mask per pair."""
    pred, target, ref = make_pairs(SHAPE)
    weight = 1 / (1 - torch.tensor([0.3, 0.5, 0.9, 0.7], device=DEVICE))
    errors = pair_errors(pred, target, ref)
    (pw, pl), (rw, rl) = four_errors(pred, target, ref)
    scaled = PairErrors(
        **{
            name: getattr(errors, name) * weight[:, None]
            for name in ("policy_chosen", "policy_rejected", "excess_chosen", "excess_rejected")
        }
    )
    want = -logsigmoid(-0.5 * 500.0 * weight * ((pw - pl) - (rw - rl)))
    got = preference_loss(scaled, beta=500.0, objective="dpo").losses
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


OBJECTIVES = ("dpo", "pg_dpo", "ipo", "hinge")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_sign_is_right(objective, backend):
    """A step down the gradient lowers the chosen error and raises the margin. (An ORPO example turns the sign.)"""
    pred, target, ref = make_pairs(SHAPE, distance=0.01)
    policy = pred.clone().requires_grad_()
    before = diffusion_dpo_loss(policy, target, ref, beta=10.0, objective=objective)
    (grad,) = torch.autograd.grad(before.loss, policy)
    moved = pred - 0.1 * grad / grad.abs().max()
    after = diffusion_dpo_loss(moved, target, ref, beta=10.0, objective=objective)
    assert (after.implicit_reward_chosen > before.implicit_reward_chosen).all()
    assert (after.implicit_reward_rejected < before.implicit_reward_rejected).all()
    assert after.loss < before.loss


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_beta_is_read(objective, backend):
    """diffusers' ipo reads an argument that doesn't exist, RealDPO never reads its beta."""
    inputs = make_pairs(SHAPE)
    small, large = (diffusion_dpo_loss(*inputs, beta=beta, objective=objective) for beta in (100.0, 400.0))
    torch.testing.assert_close(large.logits, 4 * small.logits)
    assert small.loss != large.loss


def test_five_dimensions_give_one_logit_a_pair(backend):
    """VideoDPO's mean over axes 1 to 3 leaves the width: its sigmoid runs per latent column."""
    pred, target, ref = make_pairs(SHAPE)
    result = diffusion_dpo_loss(pred, target, ref, beta=5000.0, objective="dpo")
    assert result.logits.shape == (4,)
    per_column = ((pred - target) ** 2).mean([1, 2, 3])
    assert per_column.shape == (8, 5)
    torch.testing.assert_close(result.loss, diffusion_dpo(pred, target, ref, 5000.0), rtol=1e-3, atol=1e-3)


def test_chosen_and_rejected_share_noise_and_level(backend):
    """VideoDPO draws them independently, and DiffSynth's are uniform (see test_the_noise_is_gaussian)."""
    latents = torch.zeros(8, 4, 5, device=DEVICE)
    level = torch.tensor([0.2, 0.4, 0.6, 0.8], device=DEVICE)
    ids = torch.arange(4, device=DEVICE)
    noisy, target = noise_pair(latents, level, seed=0, pair_ids=ids, draw=0, prediction="flow")
    assert torch.equal(noisy[:4], noisy[4:])
    torch.testing.assert_close(noisy[:4], level.reshape(4, 1, 1) * target[:4])
    assert not torch.equal(target[0], target[1])


def test_a_weight_belongs_to_its_pair(backend):
    """SmPO's code takes the first sample's probability for the whole batch."""
    inputs = make_pairs(SHAPE)
    weight = torch.tensor([1.0, 0.0, 2.0, 5.0], device=DEVICE)
    plain = diffusion_dpo_loss(*inputs, beta=500.0)
    weighted = diffusion_dpo_loss(*inputs, beta=500.0, weight=weight)
    assert torch.equal(weighted.losses, plain.losses * weight)


def test_a_bf16_reference_costs_no_logits(backend):
    """The public formula on a bf16 reference error is off by a large part of a logit; ours is not."""
    pred, target, ref = make_pairs(
        (4, 16, 4, 16, 16), (torch.float32, torch.float32, torch.bfloat16), distance=1e-3
    )
    want = oracle_logits(pred, target, ref)
    bf16 = ((ref - target.bfloat16()) ** 2).flatten(1).mean(1)
    policy = ((pred - target) ** 2).flatten(1).mean(1)
    public = -2500.0 * ((policy[:2] - policy[2:]) - (bf16[:2] - bf16[2:]))
    ours = diffusion_dpo_loss(pred, target, ref, beta=5000.0, objective="dpo").logits
    assert (public - want).abs().max() > 0.1
    assert (ours - want).abs().max() < 1e-5


def oracle_logits(pred, target, ref):
    pred, target, ref = (x.double() for x in (pred, target, ref))
    return -2500.0 * difference(pred, target, ref)
