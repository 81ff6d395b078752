"""`group_errors` on both backends against float64: groups of any size, ragged ones, separate samples, parts."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_inputs import DEVICE, make_pairs

from pgdpo_kernels import GroupErrors, PairErrors, group_errors, pair_errors
from pgdpo_kernels.pairs.pair_launch import own_row

pytestmark = pytest.mark.quick

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ERRORS = ("policy", "ref", "excess", "drift")


def oracle(pred, target, ref, of, index, mask, slopes):
    """Fields `[N, S]`, what size their terms have, and d(sum of slopes * fields) / d pred, in float64.

    of: the group of each sample; index: the segment of each frame, axis 2; mask: `[G | 1, ...]` or None.
    """
    pred, target, ref = (x.detach().cpu().double().numpy() for x in (pred, target, ref))
    mask = np.ones((1, *pred.shape[1:])) if mask is None else mask.cpu().double().numpy()
    index = np.asarray(index)
    shape = len(pred), index.max() + 1
    fields = {name: np.zeros(shape) for name in (*ERRORS, "count")}
    sizes, grad = {name: 0.0 for name in ERRORS}, np.zeros_like(pred)
    for row, segment in np.ndindex(shape):
        weight = np.broadcast_to(mask[of[row] if len(mask) > 1 else 0], pred.shape[1:])
        place = np.broadcast_to((index == segment)[:, None, None], pred.shape[1:]) & (weight > 0)
        w, p, t, r = (x[place] for x in (weight, pred[row], target[row], ref[row]))
        total = fields["count"][row, segment] = w.sum()
        if total == 0:
            continue
        terms = {"policy": (p - t) ** 2, "ref": (r - t) ** 2, "drift": (p - r) ** 2}
        terms["excess"] = (p - t) ** 2 - (r - t) ** 2
        for name, term in terms.items():
            fields[name][row, segment] = (w * term).sum() / total
            sizes[name] = max(sizes[name], (w * abs(term)).sum() / total)
        pull, drag = (slopes[name][row, segment] for name in ("policy", "drift"))
        pull += slopes["excess"][row, segment]
        grad[row][place] = 2 * w / total * (pull * (p - t) + drag * (p - r))
    return fields, sizes, grad


def weighted_sum(errors, slopes):
    return sum((getattr(errors, name) * on_device(slope)).sum() for name, slope in slopes.items())


def on_device(x):
    return torch.as_tensor(x, dtype=torch.float32, device=DEVICE)


def random_slopes(shape, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name in ("policy", "excess", "drift")}


def take_apart(x):
    return [row.clone() for row in x.detach()]


def compare(errors, grad, want, half):
    fields, sizes, gradient = want
    for name in (*ERRORS, "count"):
        found = getattr(errors, name).detach().cpu().double().numpy()
        np.testing.assert_allclose(found, fields[name], rtol=1e-6, atol=1e-5 * sizes.get(name, 1.0) + 1e-12)
    found = grad.cpu().double().numpy()
    rounding = 1e-2 if half else 1e-5
    np.testing.assert_allclose(found, gradient, rtol=rounding, atol=rounding * 1e-2 * abs(gradient).max())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.integers(1, 5),
    groups=st.integers(1, 3),
    frames=st.integers(1, 5),
    side=st.integers(1, 8),
    masked=st.sampled_from([None, "element", "frame", "group frame", "spatial"]),
    dtype=st.sampled_from(DTYPES),
    ragged=st.booleans(),
    separate=st.booleans(),
    data=st.data(),
)
def test_against_float64(backend, members, groups, frames, side, masked, dtype, ragged, separate, data):
    index = data.draw(st.none() | st.lists(st.integers(0, 2), min_size=frames, max_size=frames))
    samples = members * groups
    of = [row % groups for row in range(samples)]
    if ragged:
        of = data.draw(st.lists(st.integers(0, groups - 1), min_size=samples, max_size=samples))
        groups = max(of) + 1
    shape = (samples, 2, frames, side, side + 1)
    pred, target, ref = make_pairs(shape, (dtype, torch.float32, dtype))
    sizes = {"element": (groups, *shape[1:]), "spatial": (groups, 1, 1, side, side + 1)}
    sizes |= {"frame": (frames,), "group frame": (groups, frames)}
    mask = whole = None
    if masked:
        mask = torch.rand(sizes[masked], generator=torch.Generator().manual_seed(side))
        mask = (mask * (mask > 0.4)).to(DEVICE)
        whole = mask.reshape(-1, 1, frames, 1, 1) if "frame" in masked else mask
    inputs = [list(x) for x in (pred, target, ref)] if separate else (pred, target, ref)
    leaves = [x.detach().requires_grad_() for x in (inputs[0] if separate else [pred])]
    errors = group_errors(
        leaves if separate else leaves[0], *inputs[1:], of if ragged else members, segments=index, mask=mask
    )
    assert errors.groups == (tuple(of) if ragged else members)
    slopes = random_slopes(errors.policy.shape)
    grads = torch.autograd.grad(weighted_sum(errors, slopes), leaves)
    want = oracle(pred, target, ref, of, [0] * frames if index is None else index, whole, slopes)
    compare(errors, torch.stack(grads) if separate else grads[0], want, dtype != torch.float32)


@pytest.mark.parametrize("separate", [False, True], ids=["stacked", "separate"])
def test_pairs_have_the_bits_of_pair_errors(backend, separate):
    """Every field and every gradient, with both rows in a program; by ragged groups, with one."""
    pred, target, ref = make_pairs((6, 2, 4, 40, 50), (torch.bfloat16, torch.float32, torch.bfloat16))
    mask = torch.rand(3, 2, 4, 40, 50, device=DEVICE)
    given_ = {"segments": [0, 1, 1, 0], "mask": mask}
    first, second = torch.arange(3, device=DEVICE), torch.arange(3, 6, device=DEVICE)
    for groups, cross in ((2, True), ([0, 1, 2] * 2, False)):
        policy = pred.clone().requires_grad_()
        pairs = pair_errors(policy, target, ref, cross=cross, **given_)
        leaves = [x.requires_grad_() for x in (take_apart(pred) if separate else [pred.clone()])]
        errors = group_errors(leaves if separate else leaves[0], target, ref, groups, cross=cross, **given_)
        again = dataclasses.replace(errors.pairs(first, second), cross=errors.cross)
        totals = []
        for found in (pairs, again):
            fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(PairErrors)}
            assert (fields["cross"] is not None) == cross
            asked = [x for x in fields.values() if x is not None and x.requires_grad]
            totals.append(sum((number + 1) * x.square().sum() for number, x in enumerate(asked)))
            for name, x in fields.items():
                one = getattr(pairs, name)
                assert x is one is None or torch.equal(x, one), name
        (want,) = torch.autograd.grad(totals[0], policy)
        grads = torch.autograd.grad(totals[1], leaves)
        assert torch.equal(torch.stack(grads) if separate else grads[0], want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", [40, 41])
def test_a_sample_has_its_bits_in_any_company(backend, dtype, side):
    """Whatever K is, whichever rows lie around it, stacked or separate: errors and gradients."""
    pred, target, ref = make_pairs((6, 1, 3, side, 51), (dtype,) * 3)
    mask = torch.rand(6, 3, device=DEVICE)
    slopes = random_slopes((1, 3))

    def numbers(rows, groups, mask, separate=False):
        leaf, *others = (x[rows].clone() for x in (pred, target, ref))
        leaf.requires_grad_()
        inputs = [[*x] for x in (leaf, *others)] if separate else (leaf, *others)
        errors = group_errors(*inputs, groups, segments=3, mask=mask)
        of_rows = {name: slope.repeat(len(rows), 0) for name, slope in slopes.items()}
        (grad,) = torch.autograd.grad(weighted_sum(errors, of_rows), leaf)
        return [*(getattr(errors, name) for name in ERRORS), errors.count, grad]

    alone = [numbers([row], 1, mask[row : row + 1]) for row in range(6)]
    companies = [([*range(6)], 1, mask), ([5, 0, 3], [0, 1, 2], mask[[5, 0, 3]])]
    companies += [([0, 1, 2], [1, 2, 0], mask[[2, 0, 1]])]
    for rows, groups, weights in companies:
        for separate in (False, True):
            together = numbers(rows, groups, weights, separate)
            for place, row in enumerate(rows):
                for found, want in zip(together, alone[row], strict=True):
                    assert torch.equal(found[place], want[0]), (rows, separate)
    for members in (2, 3, 6):  # they share a mask
        shared = mask[: 6 // members]
        together = numbers([*range(6)], members, shared)
        for row in range(6):
            group = slice(row % len(shared), row % len(shared) + 1)
            for found, want in zip(together, numbers([row], 1, shared[group]), strict=True):
                assert torch.equal(found[row], want[0]), (members, row)


def test_separate_samples_may_lie_anywhere(backend):
    """Transposed ones are copied, and so are those that a wide load would miss; what is stacked comes apart."""
    pred, target, ref = make_pairs((3, 2, 4, 4, 6))
    want = group_errors(pred, target, ref, 3, segments=2)
    memory = torch.empty(3, pred[0].numel() + 1, device=DEVICE)
    odd = [row[1:].view(pred[0].shape).copy_(x) for row, x in zip(memory, pred, strict=True)]
    turned = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in target]
    for inputs in ((odd, turned, list(ref)), (odd, target, ref), (pred, turned, ref)):
        found = group_errors(*inputs, 3, segments=2)
        assert all(torch.equal(getattr(found, name), getattr(want, name)) for name in (*ERRORS, "count"))


def test_a_wide_load_finds_its_row():
    """A row is copied where 128 bits at a time would miss it, and nowhere else."""
    memory = torch.zeros(64, device=DEVICE)
    for start, align, copied in ((0, 8, False), (1, 8, True), (1, 1, False), (4, 8, False)):
        x = memory[start : start + 16].view(4, 4)
        row = own_row(x, align)
        assert (row.data_ptr() != x.data_ptr()) == copied
        assert align == 1 or row.data_ptr() % 16 == 0
    assert own_row(memory.view(8, 8).T, 8).is_contiguous()


def test_equal_predictions_have_no_excess(backend):
    pred, target, _ = make_pairs((6, 3, 4, 9, 9), (torch.bfloat16,) * 3)
    parts = {"picture": pred, "sound": pred[..., 0]}, {"picture": target, "sound": target[..., 0]}
    for inputs in ((pred, target), (list(pred), list(target)), parts):
        same = inputs[0] if isinstance(inputs[0], dict) else [x.clone() for x in pred]
        errors = group_errors(*inputs, same, 3, segments=2)
        zero = torch.zeros(6, 2, device=DEVICE)
        assert torch.equal(errors.excess, zero) and torch.equal(errors.drift, zero)


def test_excess_does_not_cancel(backend):
    """A policy 1e-4 away from its reference: a difference of two rounded means would keep three digits."""
    pred, target, ref = make_pairs((5, 3, 4, 20, 20), distance=1e-4)
    found = group_errors(pred, target, ref, [0, 0, 0, 1, 1]).excess.cpu().double()
    p, t, r = (x.cpu().double() for x in (pred, target, ref))
    want = ((p - t) ** 2 - (r - t) ** 2).mean([1, 2, 3, 4])
    torch.testing.assert_close(found[:, 0], want, rtol=0, atol=1e-6 * want.abs().max().item())


def test_parts_are_summed_by_their_weights(backend):
    """Picture and sound of three samples: each a mean of its own, so that the larger doesn't drown the other."""
    pred, target, ref = make_pairs((6, 2, 4, 5, 5))
    picture, sound = (pred, target, ref), tuple(list(x[:, :1, :, 0, 0].clone()) for x in (pred, target, ref))
    leaf, tone = pred.clone().requires_grad_(), [x.requires_grad_() for x in sound[0]]
    weights, mask = {"picture": 0.75, "sound": 3.0}, torch.rand(3, 4, device=DEVICE)
    masks = {"picture": mask}
    alike = ((leaf, tone), *zip(picture[1:], sound[1:], strict=True))
    inputs = [{"picture": one, "sound": other} for one, other in alike]
    both = group_errors(*inputs, 2, segments=2, weights=weights, mask=masks, cross=True)
    first = group_errors(*picture, 2, segments=2, mask=mask, cross=True)
    second = group_errors(*(torch.stack(x).detach() for x in sound), 2, segments=2, cross=True)
    for name in (*ERRORS, "cross"):
        want = 0.75 * getattr(first, name) + 3.0 * getattr(second, name)
        torch.testing.assert_close(getattr(both, name), want, rtol=1e-6, atol=1e-9)
    assert torch.equal(both.count, first.count + second.count)
    slopes = random_slopes((6, 2))
    grads = torch.autograd.grad(weighted_sum(both, slopes), [leaf, *tone])
    for weight, found, inputs in ((0.75, grads[0], picture), (3.0, torch.stack(grads[1:]), sound)):
        stacked = [x if isinstance(x, torch.Tensor) else torch.stack(x).detach() for x in inputs]
        stacked[0] = stacked[0].clone().requires_grad_()
        errors = group_errors(*stacked, 2, segments=2, mask=mask if weight < 1 else None)
        (want,) = torch.autograd.grad(weighted_sum(errors, slopes), stacked[0])
        torch.testing.assert_close(found, weight * want, rtol=1e-5, atol=1e-8)


def test_what_is_masked_out_may_be_nan(backend):
    pred, target, ref = make_pairs((6, 2, 4, 5, 5))
    mask = torch.ones(2, 4, device=DEVICE)
    mask[:, 3] = 0
    pred[:, :, 3] = target[:, :, 3] = float("nan")
    for separate in (False, True):
        leaves = [x.requires_grad_() for x in (take_apart(pred) if separate else [pred.clone()])]
        errors = group_errors(leaves if separate else leaves[0], target, ref, 3, mask=mask, segments=4)
        assert all(getattr(errors, name).isfinite().all() for name in ERRORS)
        assert not errors.policy[:, 3].any() and not errors.count[:, 3].any()
        for grad in torch.autograd.grad(weighted_sum(errors, random_slopes((6, 4))), leaves):
            assert grad.isfinite().all()
            assert not grad[..., 3, :, :].any()


@pytest.mark.parametrize("separate", [False, True], ids=["stacked", "separate"])
def test_a_broken_sample_stays_alone(backend, separate):
    pred, target, ref = make_pairs((6, 2, 4, 5, 5))
    clean = group_errors(pred, target, ref, 3)
    pred[4, 0, 0, 0, 0] = float("nan")
    errors = group_errors(list(pred) if separate else pred, target, ref, 3)
    others = [0, 1, 2, 3, 5]
    assert errors.policy[4].isnan() and errors.excess[4].isnan()
    for name in ERRORS:
        assert torch.equal(getattr(errors, name)[others], getattr(clean, name)[others]), name


@pytest.mark.parametrize("known", [False, True], ids=["subtracted", "given"])
def test_a_cached_reference(backend, known):
    pred, target, ref = make_pairs((3, 2, 4, 5, 5))
    live = group_errors(pred.requires_grad_(), target, ref, 3, segments=2)
    excess = live.excess.detach() if known else None
    cached = group_errors(pred, target, groups=3, ref_errors=live.ref.detach(), excess=excess, segments=2)
    assert cached.drift is None
    assert torch.equal(cached.ref, live.ref)
    torch.testing.assert_close(cached.excess, live.excess, rtol=0, atol=0 if known else 3e-8)
    slopes = on_device(random_slopes((3, 2))["excess"])
    grads = (torch.autograd.grad((x.excess * slopes).sum(), pred)[0] for x in (cached, live))
    assert torch.equal(*grads)
    one = group_errors(pred, target, groups=3, ref_errors=live.ref[:, 0].detach())
    assert torch.equal(one.ref[:, 0], live.ref[:, 0])


def test_without_reference(backend):
    pred, target, _ = make_pairs((3, 2, 4, 5, 5))
    errors = group_errors(pred.requires_grad_(), target, groups=1, segments=4)
    assert errors.ref is errors.excess is errors.drift is errors.cross is None
    (grad,) = torch.autograd.grad(errors.policy[1].sum(), pred)
    assert grad[1].any() and not grad[[0, 2]].any()


def test_pairs_of_a_list_share_their_samples(backend):
    """All pairs of a ranked list of three: a sample's gradient is the sum over the pairs that it stands in."""
    pred, target, ref = make_pairs((3, 2, 4, 5, 5))
    errors = group_errors(pred.requires_grad_(), target, ref, [2, 0, 1], mask=torch.rand(3, 4, device=DEVICE))
    pairs = errors.pairs(*(torch.tensor(x, device=DEVICE) for x in ([0, 0, 1], [1, 2, 2])))
    assert torch.equal(pairs.excess_chosen, errors.excess[[0, 0, 1]])
    assert torch.equal(pairs.drift_rejected, errors.drift[[1, 2, 2]])
    assert torch.equal(pairs.count, errors.count[[0, 0, 1]])
    (grad,) = torch.autograd.grad(
        pairs.excess_rejected.sum() - pairs.excess_chosen.sum(), pred, retain_graph=True
    )
    (want,) = torch.autograd.grad((errors.excess * on_device([[-2.0], [0.0], [2.0]])).sum(), pred)
    torch.testing.assert_close(grad, want)


def test_segments_are_pooled_by_their_counts():
    errors = GroupErrors(torch.tensor([[1.0, 3.0], [2.0, 4.0]], requires_grad=True), groups=2)
    errors.count, errors.cross = torch.tensor([[3.0, 1.0]] * 2), torch.tensor([[0.0, 8.0]])
    whole = errors.over_segments()
    assert whole.policy.tolist() == [[1.5], [2.5]]
    assert (whole.cross.tolist(), whole.count.tolist(), whole.groups) == ([[2.0]], [[4.0], [4.0]], 2)
    assert whole.ref is None
    assert not whole.detach().policy.requires_grad and whole.policy.requires_grad
