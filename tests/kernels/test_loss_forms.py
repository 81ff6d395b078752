"""The forms of the losses: halves that lie apart, mixed dtypes, tokens, reductions, an objective of one's own."""

import itertools

import kernel_oracle as oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import DEVICE, make_pairs
from torch.nn.functional import softplus
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pgdpo_kernels import diffusion_dpo_loss, pair_errors, preference_loss, set_backend
from pgdpo_kernels.pairs.pair_launch import separate_rows

pytestmark = pytest.mark.quick

SHAPE = (6, 2, 4, 5, 6)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WEIGHT = torch.tensor([0.5, 2.0, 1.0], device=DEVICE)


def outcome(pred, target, ref, apart, *, loss=True, **options):
    """All numbers and the gradient by the stacked prediction; `apart`: which of the three come as halves."""
    leaves = [x.clone().requires_grad_() for x in (pred.chunk(2) if apart[0] else (pred,))]
    given = [
        x if x is None or not cut else tuple(x.chunk(2))
        for x, cut in zip((target, ref), apart[1:], strict=True)
    ]
    policy = tuple(leaves) if apart[0] else leaves[0]
    if loss:
        result = diffusion_dpo_loss(policy, *given, beta=300.0, **options)
        numbers = [result.loss, result.losses, result.slope_chosen, *vars(result.errors).values()]
        total = result.loss.sum()
    else:
        errors = pair_errors(policy, *given, cross=True, **options)
        numbers = list(vars(errors).values())
        total = errors.excess_chosen.sum() + 2 * errors.drift_rejected.sum() + errors.cross.square().sum()
    grads = torch.autograd.grad(total, leaves)
    assert all(grad.dtype == leaf.dtype for grad, leaf in zip(grads, leaves, strict=True))
    return [torch.cat(grads), *(x for x in numbers if x is not None)]


def assert_same(one, other):
    assert len(one) == len(other)
    assert all(torch.equal(*both) for both in zip(one, other, strict=True))


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_halves_have_the_bits_of_a_stack(data):
    """In any mixture, with segments, masks and weights."""
    pairs, frames, seed = (data.draw(st.integers(1, 4), name) for name in ("pairs", "frames", "seed"))
    shape = (2 * pairs, 2, frames, 3, data.draw(st.integers(1, 4), "width"))
    dtypes = [data.draw(st.sampled_from(DTYPES), "dtype") for _ in range(3)]
    pred, target, ref = make_pairs(shape, dtypes, seed=seed)
    options = {"segments": data.draw(st.sampled_from([None, frames]), "segments")}
    if data.draw(st.booleans(), "mask"):
        options["mask"] = torch.rand(pairs, frames, device=DEVICE).round(decimals=1)
    loss, reduction = data.draw(st.booleans(), "loss"), data.draw(st.sampled_from(["mean", "sum", "none"]))
    if loss:
        options |= {"reduction": reduction, "weight": torch.rand(pairs, device=DEVICE), "loss_scale": 0.3}
    apart = data.draw(st.sampled_from([*itertools.product((False, True), repeat=3)][1:]), "apart")
    for backend in ("eager", "triton"):
        with set_backend(backend):
            both = (outcome(pred, target, ref, x, loss=loss, **options) for x in ((False,) * 3, apart))
            assert_same(*both)


def test_halves_may_lie_anywhere(backend):
    """Strided, transposed, or where a wide load would miss them: read element by element, a sum has another order."""
    pred, target, ref = make_pairs((4, 2, 4, 4, 6))
    want = outcome(pred, target, ref, (False,) * 3)
    memory = torch.empty(2, 2, pred[0].numel() + 1, device=DEVICE)
    odd = [m[:, 1:].unflatten(1, pred.shape[1:]) for m in memory]
    turned = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in target.chunk(2)]
    for place, half in zip(odd, pred.chunk(2), strict=True):
        place.copy_(half)
    for halves in (odd, [x.clone() for x in pred.chunk(2)]):
        leaves = [x.detach().requires_grad_() for x in halves]
        result = diffusion_dpo_loss(leaves, turned, ref, beta=300.0)
        grads = torch.autograd.grad(result.loss, leaves)
        if halves is odd and backend == "triton":
            torch.testing.assert_close(torch.cat(grads), want[0])
            torch.testing.assert_close(result.losses, want[2])
        else:
            assert torch.equal(torch.cat(grads), want[0]) and torch.equal(result.losses, want[2])


class Operators(TorchDispatchMode):
    """Names of the operators whose tensors are as large as a half, but for those that make views or empty memory."""

    FREE = ("detach", "alias", "view", "split", "split_with_sizes", "empty", "new_empty")

    def __init__(self, size):
        super().__init__()
        self.size, self.seen = size, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        large = any(isinstance(x, torch.Tensor) and x.numel() >= self.size for x in tree_iter((args, output)))
        name = function.overloadpacket.__name__
        if large and name not in self.FREE:
            self.seen.append(name)
        return output


def test_halves_are_neither_joined_nor_copied():
    """An operator forward, one backward; both gradients lie in the memory that it wrote and are handed on so."""
    halves = [
        [x.contiguous() for x in tensor.chunk(2)] for tensor in make_pairs(SHAPE, (torch.bfloat16,) * 3)
    ]
    leaves = [x.requires_grad_() for x in halves[0]]
    with set_backend("triton"), Operators(leaves[0].numel()) as operators:
        loss = diffusion_dpo_loss(leaves, *halves[1:], beta=300.0).loss
        assert operators.seen == ["separate_errors"]
        loss.backward()
    assert operators.seen == ["separate_errors", "separate_errors_backward"]
    chosen, rejected = (x.grad for x in leaves)
    assert chosen.untyped_storage().data_ptr() == rejected.untyped_storage().data_ptr()
    assert rejected.data_ptr() == chosen.data_ptr() + chosen.nbytes


def test_rows_of_halves_are_the_memory_that_was_given():
    one, other = torch.zeros(3, 2, 8, device=DEVICE), torch.zeros(3, 5, 8, device=DEVICE)[:, 1:3]
    assert not other.is_contiguous()
    rows = separate_rows([one, other], [one, other], [], None, None, [], 0, 2, True)
    want = [x[row].data_ptr() for x in (one, other) for row in range(3)]
    assert rows.addresses.tolist() == [want, want]
    assert rows.cut.align == 8 and rows.pairs == 3
    odd = torch.zeros(49, device=DEVICE)[1:].view(3, 2, 8)
    rows = separate_rows([one, odd], [one, odd], [], None, None, [], 0, 2, True)
    assert rows.addresses[0, 3] == odd.data_ptr() and rows.cut.align == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("apart", [False, True], ids=["stacked", "halves"])
def test_every_combination_of_dtypes(backend, dtype, apart):
    """The float64 loss of the rounded inputs, and its gradient in the prediction's dtype."""
    for others in itertools.product(DTYPES, repeat=2):
        pred, target, ref = make_pairs((4, 1, 2, 3, 4), (dtype, *others))
        grad, loss, *_ = outcome(pred, target, ref, (apart,) * 3, objective="dpo")
        leaf = pred.double().requires_grad_()
        policy, known = (((x - target.double()) ** 2).flatten(1).mean(1) for x in (leaf, ref.double()))
        e_w, e_l = (policy - known).chunk(2)
        want = softplus(150.0 * (e_w - e_l)).mean()
        (slope,) = torch.autograd.grad(want, leaf)
        torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-7)
        eps = max(torch.finfo(dtype).eps, 2e-5)
        torch.testing.assert_close(grad.double(), slope, rtol=eps, atol=eps * slope.abs().max().item())


def test_cached_errors_in_every_form(backend):
    pred, target, ref = make_pairs(SHAPE)
    live = pair_errors(pred, target, ref, segments=2)
    known, excess = ([getattr(live, f"{x}_{s}") for s in ("chosen", "rejected")] for x in ("ref", "excess"))
    options = {"segments": 2, "ref_errors": torch.cat(known), "excess": torch.cat(excess)}
    want = outcome(pred, target, None, (False,) * 3, **options)
    for apart in itertools.product((False, True), repeat=2):
        options |= {"ref_errors": known, "excess": tuple(excess)}
        assert_same(outcome(pred, target, None, (*apart, False), **options), want)
    whole = [x.mean(1) for x in known]  # [B] for one segment
    halves = outcome(pred, target, None, (True, True, False), ref_errors=whole)
    assert_same(halves, outcome(pred, target, None, (False,) * 3, ref_errors=torch.cat(whole)))


def test_tokens(backend):
    """[2B, N, C], some of them padding: weights [B, N] of frames along axis 1, or [B, N, 1]."""
    pred, target, ref = make_pairs((4, 7, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0.5, 0, 0, 0]], device=DEVICE)
    pred[:2][mask == 0] = float("nan")
    index = [0, 0, 0, 1, 1, 1, 1]
    want = oracle.pair_errors(pred.cpu(), target.cpu(), ref.cpu(), index, 1, mask[..., None].cpu())
    found = [
        outcome(pred, target, ref, (apart,) * 3, mask=weights, segments=index, frame_dim=1)
        for apart in (False, True)
        for weights in (mask, mask[..., None])
    ]
    for other in found[1:]:
        assert_same(found[0], other)
    assert found[0][0].isfinite().all() and not found[0][0][:2][mask == 0].any()
    errors = pair_errors(pred, target, ref, mask=mask, segments=index, frame_dim=1)
    for name in ("policy_chosen", "excess_rejected", "count"):
        np.testing.assert_allclose(getattr(errors, name).cpu(), want[name], rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weights"])
@pytest.mark.parametrize("two", [False, True], ids=["one op", "two"])
def test_reductions(backend, two, weight):
    """`sum` and `none` are the mean's terms, `loss_scale` a factor of all that is asked of `.loss`."""
    pred, target, ref = make_pairs(SHAPE)

    def result(**options):
        policy = pred.clone().requires_grad_()
        given = {"beta": 300.0, "weight": weight, **options}
        if two:
            found = preference_loss(pair_errors(policy, target, ref), **given)
        else:
            found = diffusion_dpo_loss(policy, target, ref, **given)
        return found, policy

    def gradient(found, policy, upstream=None):
        return torch.autograd.grad(found.loss, policy, upstream)[0]

    plain, policy = result()
    slopes, losses = gradient(plain, policy), oracle.array(plain.losses.cpu())
    assert torch.equal(result(reduction="mean", loss_scale=1.0)[0].loss, plain.loss)
    for reduction, want in (("mean", losses.mean()), ("sum", losses.sum()), ("none", losses)):
        for scale in (1.0, 0.125):
            found, policy = result(reduction=reduction, loss_scale=scale)
            np.testing.assert_allclose(oracle.array(found.loss.cpu()), scale * want, rtol=1e-6)
            for name in ("losses", "logits", "slope_chosen", "slope_rejected"):
                assert torch.equal(getattr(found, name), getattr(plain, name)), name
            upstream = torch.ones_like(found.loss)
            pairs = 1 if reduction == "mean" else len(losses)
            torch.testing.assert_close(
                gradient(found, policy, upstream), scale * pairs * slopes, rtol=1e-5, atol=1e-9
            )
    found, policy = result(reduction="none")
    (grad,) = torch.autograd.grad(found.loss[1], policy)
    assert grad[[1, 4]].any() and not grad[[0, 2, 3, 5]].any()


def test_one_op_or_two_reduce_to_the_same_bits(backend):
    pred, target, ref = make_pairs(SHAPE)
    for reduction in ("mean", "sum", "none"):
        options = {"beta": 300.0, "reduction": reduction, "loss_scale": 0.3, "weight": WEIGHT}
        found = []
        for two in (False, True):
            policy = pred.clone().requires_grad_()
            if two:
                loss = preference_loss(pair_errors(policy, target, ref), **options).loss
            else:
                loss = diffusion_dpo_loss(policy, target, ref, **options).loss
            found.append((loss, *torch.autograd.grad(loss.square().sum(), policy)))
        assert_same(*found)


def margin(errors):
    errors = errors.over_segments()
    return softplus(150.0 * (errors.excess_chosen - errors.excess_rejected))[:, 0]


@pytest.mark.parametrize("apart", [False, True], ids=["stacked", "halves"])
def test_an_objective_of_ones_own(backend, apart):
    """Diffusion-DPO by hand is Diffusion-DPO, with weights, segments, a reduction and a scale."""
    pred, target, ref = make_pairs(SHAPE)
    shared = {"weight": WEIGHT, "reduction": "sum", "loss_scale": 0.5}
    found = []
    for named in (True, False):
        objective = {"objective": "dpo", "beta": 300.0} if named else {"objective": margin}
        leaves = [x.clone().requires_grad_() for x in (pred.chunk(2) if apart else (pred,))]
        result = diffusion_dpo_loss(
            leaves if apart else leaves[0], target, ref, segments=2, **objective, **shared
        )
        grads = torch.autograd.grad(result.loss, leaves)
        rewards = result.implicit_reward_chosen, result.implicit_reward_rejected
        assert not result.losses.requires_grad and not result.errors.excess_chosen.requires_grad
        found.append((result.loss, result.losses, *rewards, *grads))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-8)
    assert result.logits is result.ars_alpha is result.ipr_gate is result.slope_chosen is None
    two = preference_loss(pair_errors(pred, target, ref, segments=2), objective=margin, **shared)
    assert torch.equal(two.loss, result.loss)


def test_an_objective_without_a_reference(backend):
    pred, target, _ = make_pairs(SHAPE)
    policy = pred.requires_grad_()
    result = diffusion_dpo_loss(
        policy, target, objective=lambda e: softplus(e.policy_chosen - e.policy_rejected)[:, 0]
    )
    assert result.implicit_reward_chosen is None and result.errors.ref_chosen is None
    chosen, rejected = torch.autograd.grad(result.loss, policy)[0].chunk(2)
    assert chosen.any() and rejected.any()


PRED, TARGET, REF = make_pairs((4, 2, 4, 3, 5))
HALVES = tuple(PRED.chunk(2))
LEAF = PRED.clone().requires_grad_()
DPO = {"beta": 1.0}


def by(objective, pred=PRED, **options):
    return lambda: diffusion_dpo_loss(pred, TARGET, REF, objective=objective, **options)


WRONG = {
    "three": (lambda: pair_errors((*HALVES, PRED), TARGET), ValueError, "pred must be .* sequence of 3"),
    "one half": (lambda: pair_errors(PRED, [TARGET]), ValueError, "target must be a tensor .* sequence of 1"),
    "halves of no tensors": (
        lambda: pair_errors([1.0, 2.0], TARGET),
        TypeError,
        r"pred\[0\] must be a tensor",
    ),
    "two dtypes": (
        lambda: pair_errors((HALVES[0], HALVES[1].half()), TARGET),
        TypeError,
        "chosen and rejected of pred must have one dtype, got torch.float32 and torch.float16",
    ),
    "two shapes": (
        lambda: pair_errors((HALVES[0], HALVES[1][:, :1]), TARGET),
        ValueError,
        r"pred\[1\] must have the shape of one half of pred, \(2, 2, 4, 3, 5\), got \(2, 1, 4, 3, 5\)",
    ),
    "another target": (
        lambda: pair_errors(HALVES, TARGET[:2]),
        ValueError,
        r"target must have the shape of both halves of pred, \(4, 2, 4, 3, 5\), got \(2,",
    ),
    "another reference": (
        lambda: diffusion_dpo_loss(PRED, TARGET, (REF[:1], REF[:1]), **DPO),
        ValueError,
        r"ref_pred\[0\] must have the shape of one half of pred, \(2,.*got \(1,",
    ),
    "no samples": (lambda: pair_errors((PRED[:0], PRED[:0]), TARGET), ValueError, r"pred\[0\] must be \[B"),
    "cached halves": (
        lambda: diffusion_dpo_loss(
            PRED, TARGET, ref_errors=[torch.ones(n, device=DEVICE) for n in (2, 3)], **DPO
        ),
        ValueError,
        r"ref_errors\[1\] must be .*\(2, 1\).*\(3,\)",
    ),
    "three caches": (
        lambda: diffusion_dpo_loss(PRED, TARGET, ref_errors=[torch.ones(2)] * 3, **DPO),
        ValueError,
        "ref_errors must be a tensor or a pair .*got 3",
    ),
    "reduction": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, reduction="avg", **DPO),
        ValueError,
        "reduction must be one of .*'mean', 'sum', 'none'.*'avg'",
    ),
    "scale": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, loss_scale=0.0, **DPO),
        ValueError,
        "loss_scale must be a finite number above 0, got 0.0",
    ),
    "no beta": (lambda: diffusion_dpo_loss(PRED, TARGET, REF), TypeError, "beta must be given .*'pg_dpo'"),
    "option": (
        lambda: diffusion_dpo_loss(PRED, TARGET, REF, beta=1.0, ars_kk=2.0),
        TypeError,
        "unknown option ars_kk; options are ars_clip, .*safeguard_scope",
    ),
    "beta beside a callable": (
        by(margin, beta=1.0),
        ValueError,
        "beta can't be given beside a callable objective",
    ),
    "options beside a callable": (
        by(margin, timestep_weight=torch.ones(2), logit_cap=3.0),
        ValueError,
        "timestep_weight, logit_cap can't be given beside",
    ),
    "a number": (by(lambda e: 3.0), TypeError, "objective must return a tensor of losses .*got float"),
    "a mean": (
        by(lambda e: margin(e).mean()),
        ValueError,
        r"objective must return losses \[B\] = \(2,\), got shape \(\)",
    ),
    "unpooled": (by(lambda e: e.excess_chosen), ValueError, r"got shape \(2, 1\); errors are \[B, S\]"),
    "half": (by(lambda e: margin(e).half()), TypeError, "losses in torch.float32, got torch.float16"),
    "detached": (by(lambda e: margin(e).detach(), LEAF), ValueError, "losses without a gradient"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_named(name, backend):
    call, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        call()
