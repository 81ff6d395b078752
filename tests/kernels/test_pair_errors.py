"""`pair_errors` on both backends against float64, over shapes, strides, dtypes, segments and masks."""

import dataclasses

import kernel_oracle as oracle
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_inputs import make_pairs

from pgdpo_kernels import PairErrors, pair_errors, set_backend
from pgdpo_kernels.pairs.layout import cut

pytestmark = pytest.mark.quick

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def compare(backend, pred, target, ref, mask=None, index=None, frame_dim=2, seed=0):
    """Values and gradient within twice the eager op's own error, plus the last bits of fp32."""
    rng = np.random.default_rng(seed)
    want = oracle.pair_errors(pred.cpu(), target.cpu(), ref.cpu(), index, frame_dim, oracle_mask(mask, pred))
    slopes = {name: rng.standard_normal(want[name].shape) for name in oracle.FIELDS if "ref" not in name}
    grad_want = oracle.pair_errors_gradient(
        pred.cpu(), target.cpu(), ref.cpu(), slopes, index, frame_dim, oracle_mask(mask, pred)
    )
    results = {}
    for name in {"eager", backend}:
        with set_backend(name):
            policy = pred.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            errors = pair_errors(
                policy, target, ref, segments=index, mask=mask, cross=True, frame_dim=frame_dim
            )
            total = sum(
                (getattr(errors, key) * torch.tensor(value, device=pred.device).float()).sum()
                for key, value in slopes.items()
                if key != "count"
            )
            (grad,) = torch.autograd.grad(total, policy)
            results[name] = {key: oracle.array(getattr(errors, key).cpu()) for key in oracle.FIELDS}
            results[name]["grad"] = oracle.array(grad.cpu())
    want["grad"] = grad_want
    for key, value in want.items():
        error = {name: np.abs(result[key] - value).max() for name, result in results.items()}
        scale = magnitude(want, key)
        assert error[backend] <= 2 * error["eager"] + 3e-7 * scale + 1e-12, (key, error, scale)
        rounding = 1e-2 if key == "grad" and pred.dtype != torch.float32 else 1e-5
        assert error["eager"] <= rounding * scale + 1e-12, (key, error, scale)


def magnitude(want, key):
    """Of the terms that a mean is taken of: rounding goes by them where they cancel."""
    side = key.split("_")[-1]
    if key == "cross":
        return np.sqrt(want["policy_chosen"] * want["policy_rejected"]).max()
    if key.startswith("excess"):
        residuals = np.sqrt(want[f"policy_{side}"]) + np.sqrt(want[f"ref_{side}"])
        return (np.sqrt(want[f"drift_{side}"]) * residuals).max()
    return np.abs(want[key]).max()


def oracle_mask(mask, pred):
    if mask is None or mask.dim() == pred.dim():
        return None if mask is None else mask.cpu()
    return mask.cpu().reshape(-1 if mask.dim() == 2 else 1, 1, mask.shape[-1], *[1] * (pred.dim() - 3))


@pytest.mark.parametrize(
    "dtypes", [DTYPES, DTYPES[::-1], (torch.bfloat16,) * 3, (torch.float32,) * 3], ids=str
)
def test_values_and_gradient(backend, dtypes):
    compare(backend, *make_pairs((6, 3, 4, 5, 7), dtypes))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=st.integers(1, 4),
    channels=st.integers(1, 3),
    frames=st.integers(1, 6),
    side=st.integers(1, 9),
    masked=st.sampled_from([None, "element", "frame", "pair frame", "spatial"]),
    dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_random_shapes(backend, pairs, channels, frames, side, masked, dtype, data):
    index = data.draw(st.none() | st.lists(st.integers(0, 3), min_size=frames, max_size=frames))
    shape = (2 * pairs, channels, frames, side, side + 1)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    sizes = {"element": shape[1:], "spatial": (1, frames, side, side + 1)}
    sizes = {None: None, "frame": (frames,), "pair frame": (pairs, frames)} | {
        name: (pairs, *size) for name, size in sizes.items()
    }
    pred, target, ref = make_pairs(shape, (dtype, torch.float32, dtype))
    mask = None
    if masked:
        mask = torch.rand(sizes[masked], generator=generator)
        mask = (mask * (mask > 0.4)).to(pred.device)
    compare(backend, pred, target, ref, mask, index)


def test_more_elements_than_a_part(backend):
    pred, target, ref = make_pairs((4, 2, 2, 50, 61))
    compare(backend, pred, target, ref, index=[1, 0])
    compare(backend, pred, target, ref, mask=make_pairs((2, 1, 1, 50, 61))[0].abs())
    compare(backend, pred, target, ref, mask=make_pairs((2, 2, 2, 50, 61))[0].abs())


@pytest.mark.parametrize("shape", [(2, 1), (4, 7), (2, 5, 3), (12, 2, 2, 2)], ids=str)
def test_ranks(backend, shape):
    pred, target, ref = make_pairs(shape, (torch.bfloat16,) * 3)
    compare(backend, pred, target, ref, frame_dim=1)


def test_strided_rows_are_read_in_place(backend):
    wide = make_pairs((4, 5, 4, 4, 6))
    rows = [x[:, 1:3] for x in wide]
    ragged = [x[..., 1:5] for x in wide]
    compare(backend, *rows, index=[0, 0, 1, 1])
    compare(backend, *ragged)
    compare(backend, *[x.flatten(1)[:, ::2] for x in wide], frame_dim=1)
    compare(backend, rows[0], rows[1].contiguous(), rows[2].transpose(3, 4).contiguous().transpose(3, 4))


def test_rows_are_views_where_they_can_be():
    from pgdpo_kernels.pairs.layout import rows_of

    x = torch.zeros(4, 5, 4, 6)
    assert rows_of(x[:, 1:3]).data_ptr() == x[:, 1:3].data_ptr()
    assert rows_of(x.transpose(2, 3)).is_contiguous()


def test_equal_predictions_have_no_excess(backend):
    pred, target, _ = make_pairs((8, 3, 4, 9, 9), (torch.bfloat16,) * 3)
    errors = pair_errors(pred, target, pred.clone(), segments=2)
    for name in ("excess_chosen", "excess_rejected", "drift_chosen", "drift_rejected"):
        assert torch.equal(getattr(errors, name), torch.zeros_like(errors.policy_chosen)), name


def test_a_pair_alone_has_the_bits_it_has_in_a_batch(backend):
    count = 64
    pred, target, ref = make_pairs((2 * count, 2, 2, 40, 50), (torch.bfloat16,) * 3)
    kwargs = {"segments": 2, "cross": True}
    together = pair_errors(pred, target, ref, **kwargs)
    for pair in (0, 17, 63):
        alone = pair_errors(*(x[[pair, pair + count]] for x in (pred, target, ref)), **kwargs)
        for field in dataclasses.fields(PairErrors):
            whole, one = getattr(together, field.name)[pair : pair + 1], getattr(alone, field.name)
            assert torch.equal(whole, one), field.name


def test_runs_agree_to_the_bit_with_and_without_grad(backend):
    pred, target, ref = make_pairs((4, 2, 3, 40, 50))
    first = pair_errors(pred.requires_grad_(), target, ref, cross=True)
    (grad,) = torch.autograd.grad(first.excess_chosen.sum() + first.cross.sum(), pred)
    for _ in range(9):
        again = pair_errors(pred, target, ref, cross=True)
        assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in oracle.FIELDS)
        (same,) = torch.autograd.grad(again.excess_chosen.sum() + again.cross.sum(), pred)
        assert torch.equal(grad, same)
    with torch.no_grad():
        silent = pair_errors(pred, target, ref, cross=True)
    assert not silent.excess_chosen.requires_grad
    assert all(torch.equal(getattr(first, name), getattr(silent, name)) for name in oracle.FIELDS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_pair_stays_alone(backend, bad):
    pred, target, ref = make_pairs((6, 2, 4, 5, 5))
    clean = pair_errors(pred, target, ref, cross=True)
    broken = pred.clone()
    broken[1, 0, 0, 0, 0] = bad
    broken.requires_grad_()
    errors = pair_errors(broken, target, ref, cross=True)
    for name in oracle.FIELDS:
        assert torch.equal(getattr(errors, name)[[0, 2]], getattr(clean, name)[[0, 2]]), name
    assert not errors.excess_chosen[1].isfinite()
    assert errors.excess_rejected[1].isfinite()
    (grad,) = torch.autograd.grad(errors.excess_chosen.sum(), broken)
    assert grad[[0, 2, 3, 4, 5]].isfinite().all()


def test_what_is_masked_out_may_be_nan(backend):
    pred, target, ref = make_pairs((4, 2, 4, 5, 5))
    mask = torch.ones(4, device=pred.device)
    mask[3] = 0
    pred[:, :, 3] = float("nan")
    pred.requires_grad_()
    errors = pair_errors(pred, target, ref, mask=mask, segments=2, cross=True)
    whole = pair_errors(pred.detach(), target, ref, mask=mask, segments=[0, 0, 0, 1], cross=True)
    assert all(getattr(errors, name).isfinite().all() for name in oracle.FIELDS)
    for name in oracle.FIELDS:
        assert torch.equal(getattr(whole, name)[:, 1], torch.zeros(2, device=pred.device)), name
    (grad,) = torch.autograd.grad(errors.policy_rejected.sum() + errors.drift_chosen.sum(), pred)
    assert grad.isfinite().all()
    assert not grad[:, :, 3].any()


def test_without_reference(backend):
    pred, target, _ = make_pairs((4, 2, 4, 5, 5))
    errors = pair_errors(pred.requires_grad_(), target, segments=4)
    assert errors.ref_chosen is errors.excess_chosen is errors.drift_chosen is errors.cross is None
    (grad,) = torch.autograd.grad(errors.policy_chosen.sum(), pred)
    assert not grad[2:].any()
    assert grad[:2].any()


def test_errors_can_be_built_by_hand_and_pooled():
    errors = PairErrors(policy_chosen=torch.tensor([[1.0, 3.0]]), policy_rejected=torch.tensor([[2.0, 2.0]]))
    errors.count = torch.tensor([[3.0, 1.0]])
    assert errors.over_segments().policy_chosen.item() == 1.5


@pytest.mark.parametrize("given", [False, True], ids=["subtracted", "given"])
def test_a_cached_reference(backend, given):
    """Its excess has the policy error's gradient, whatever digits it is given in."""
    pred, target, ref = make_pairs((4, 2, 4, 5, 5))
    live = pair_errors(pred.requires_grad_(), target, ref, segments=2)
    known = torch.cat((live.ref_chosen, live.ref_rejected)).detach()
    excess = torch.cat((live.excess_chosen, live.excess_rejected)).detach() if given else None
    cached = pair_errors(pred, target, ref_errors=known, excess=excess, segments=2)
    assert cached.drift_chosen is None
    for name in ("ref_chosen", "ref_rejected"):
        assert torch.equal(getattr(cached, name), getattr(live, name))
    for name in ("excess_chosen", "excess_rejected"):
        found, exact = getattr(cached, name), getattr(live, name)
        torch.testing.assert_close(found, exact, rtol=0, atol=0 if given else 3e-8)
        slopes = torch.arange(1.0, 5.0, device=pred.device).reshape(2, 2)
        assert torch.equal(
            *(torch.autograd.grad((e * slopes).sum(), pred, retain_graph=True)[0] for e in (found, exact))
        )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_parts_of_a_sample(data):
    """Every element lies in one part, of its frame's segment; a segment's parts are neighbours, in their order."""
    shape = [2, *(data.draw(st.integers(1, 6), "size") for _ in range(data.draw(st.integers(1, 4), "rank")))]
    shape[-1] *= data.draw(st.sampled_from([1, 8, 3000]), "times")
    axis = data.draw(st.integers(1, len(shape) - 1), "axis")
    frames = shape[axis] if shape[axis] < 100 else shape[axis] // 1000
    shape[axis] = frames
    index = tuple(data.draw(st.integers(0, 3), "segment") for _ in range(frames))
    align = data.draw(st.sampled_from([1, 8]), "align")
    parts = cut(torch.Size(shape), axis, index, align, torch.device("cpu"))
    view = [1] * (len(shape) - 1)
    view[axis - 1] = frames
    want = torch.tensor(index).reshape(view).expand(shape[1:]).flatten()
    found = torch.full_like(want, -1)
    starts, sizes, segments = parts.table.tolist()
    for start, size, segment in zip(starts, sizes, segments, strict=True):
        place = slice(start * parts.align, (start + size) * parts.align)
        assert 0 < size * parts.align <= parts.chunk and (found[place] == -1).all()
        found[place] = segment
    assert torch.equal(found, want)
    assert list(zip(segments, starts, strict=True)) == sorted(zip(segments, starts, strict=True))
    counts = [segments.count(segment) for segment in range(max(index) + 1)]
    assert parts.bounds.tolist() == [sum(counts[:segment]) for segment in range(len(counts) + 1)]
    assert (parts.parts, parts.longest) == (len(segments), max(counts))


def test_offsets_beyond_32_bits(backend):
    """Rows 2^31 elements apart; only their pages are ever touched."""
    pred, target, ref = make_pairs((2, 3, 4, 8), (torch.float16, torch.float32, torch.float32))
    memory = torch.empty(2**31 + pred[0].numel(), dtype=torch.float16, device=pred.device)
    far = memory.as_strided(pred.shape, (2**31, *pred.stride()[1:]))
    far.copy_(pred)
    near, apart = (x.detach().requires_grad_() for x in (pred, far))
    errors = [pair_errors(x, target, ref, frame_dim=1, segments=3) for x in (near, apart)]
    assert torch.equal(errors[0].excess_rejected, errors[1].excess_rejected)
    grads = [
        torch.autograd.grad(error.excess_rejected.sum(), x)[0]
        for error, x in zip(errors, (near, apart), strict=True)
    ]
    assert torch.equal(*grads)
