"""Noise: one pure function of (seed, pair, draw, element), the same bits on every backend, and Gaussian."""

import math

import kernel_oracle as oracle
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_inputs import DEVICE

from pgdpo_kernels import noise_pair, pair_noise, set_backend
from pgdpo_kernels.backend import interpreting
from pgdpo_kernels.noise.noise_kernel import gaussians as kernel_gaussians
from pgdpo_kernels.reference.noise import gaussians, philox

pytestmark = pytest.mark.quick

IDS = torch.tensor([3, -(2**62) - 12345, 2**63 - 1], device=DEVICE)
LEVEL = torch.tensor([0.0, 0.37, 0.93], device=DEVICE)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def latents(shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(DEVICE)


def noise_of(shape, **changes):
    arguments = {"seed": 5, "pair_ids": IDS, "draw": 7} | changes
    return pair_noise((len(arguments["pair_ids"]), *shape), **arguments)


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backends_agree_to_the_bit(prediction, dtype):
    for shape in ((3, 5, 7), (1,), (4096,), (2, 2600)):
        results = []
        for name in ("eager", "triton"):
            with set_backend(name):
                pair = noise_pair(
                    latents((6, *shape), dtype),
                    LEVEL,
                    seed=-(2**61) + 977,
                    pair_ids=IDS,
                    draw=torch.tensor([0, 2**32 - 1, 5], device=DEVICE),
                    prediction=prediction,
                )
                results.append((*pair, noise_of(shape, dtype=dtype)))
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True)), shape


def philox_numpy(counter, key):
    """Philox4x32-10 in Python integers, after the reference code of Salmon et al. (SC 2011)."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(right >> 32) ^ c[1] ^ k[0], right & 0xFFFFFFFF, (left >> 32) ^ c[3] ^ k[1], left & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_philox_known_answers():
    """Vectors of Random123's kat_vectors for philox4x32-10."""
    ones = 0xFFFFFFFF
    assert philox_numpy((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox_numpy((ones,) * 4, (ones,) * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    zero = torch.zeros(1, dtype=torch.int64)
    assert [w.item() for w in philox(zero, zero, zero, 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    full = torch.full((1,), -1, dtype=torch.int64)
    assert [w.item() for w in philox(full, full, full, -1)] == [
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    ]


def test_an_element_follows_the_documented_counter(backend):
    """Element e: group of 1024, lane of 256, counter (block, draw, id low, id high), key seed; Box-Muller."""
    seed, draw, pair_id = 2**63 + 11, 9, -77
    noise = noise_of((3000,), seed=seed, pair_ids=torch.tensor([pair_id], device=DEVICE), draw=draw)[0]
    low, high = pair_id & 0xFFFFFFFF, (pair_id >> 32) & 0xFFFFFFFF
    for element in (0, 255, 256, 700, 1023, 1024, 2999):
        block = element // 1024 * 256 + element % 256
        lane = element % 1024 // 256
        words = philox_numpy((block, draw, low, high), (seed & 0xFFFFFFFF, seed >> 32))
        radius, angle = words[lane // 2 * 2], words[lane // 2 * 2 + 1]
        quarter, rest = angle >> 30, (angle << 2) & 0xFFFFFFFF
        fraction = rest - 2**32 if rest >= 2**31 else rest
        theta = math.pi / 2 * (quarter + fraction / 2**32)
        wave = math.cos(theta) if lane % 2 == 0 else math.sin(theta)
        want = math.sqrt(-2 * math.log((radius + 0.5) / 2**32)) * wave
        assert noise[element].item() == pytest.approx(want, rel=3e-6, abs=3e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1))
def test_noise_does_not_depend_on_the_batch(seed, pair_id, draw):
    ids = torch.tensor([pair_id, pair_id ^ 1, pair_id])
    draws = torch.tensor([draw, draw, draw ^ 1])
    batch = noise_of((40,), seed=seed, pair_ids=ids, draw=draws)
    assert torch.equal(noise_of((40,), seed=seed, pair_ids=ids[:1], draw=draw)[0], batch[0])
    assert torch.equal(noise_of((4, 10), seed=seed, pair_ids=ids[1:2], draw=draw)[0].flatten(), batch[1])
    assert not torch.equal(batch[0], batch[1])
    assert not torch.equal(batch[0], batch[2])
    assert not torch.equal(noise_of((40,), seed=seed ^ 1, pair_ids=ids[:1], draw=draw)[0], batch[0])
    # The start of a longer sample is the shorter one: no element depends on the size.
    assert torch.equal(noise_of((5000,), seed=seed, pair_ids=ids[:1], draw=draw)[0, :40], batch[0])


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
def test_noising_and_targets(backend, prediction):
    x = latents((6, 3, 5))
    noisy, target = noise_pair(x, LEVEL, seed=5, pair_ids=IDS, draw=7, prediction=prediction)
    level = oracle.array(LEVEL.cpu()).repeat(1)[[0, 1, 2] * 2].reshape(6, 1, 1)
    eps, clean = oracle.array(noise_of((3, 5)).cpu())[[0, 1, 2] * 2], oracle.array(x.cpu())
    a, b = np.sqrt(level), np.sqrt(1 - level)
    want = {
        "flow": ((1 - level) * clean + level * eps, eps - clean),
        "epsilon": (a * clean + b * eps, eps),
        "v": (a * clean + b * eps, a * eps - b * clean),
    }[prediction]
    np.testing.assert_allclose(noisy.cpu(), want[0], atol=1e-6)
    np.testing.assert_allclose(target.cpu(), want[1], atol=1e-6)


def test_a_pair_shares_its_noise_and_strides_do_not_matter(backend):
    x = latents((6, 4, 6))
    wide = torch.cat((x, x), 1)[:, 2:6].transpose(1, 2)
    same = wide.contiguous()
    keys = {"seed": 1, "pair_ids": IDS, "draw": 2, "prediction": "epsilon"}
    _, target = noise_pair(wide, LEVEL, **keys)
    assert torch.equal(target[:3], target[3:])
    assert torch.equal(noise_pair(wide, LEVEL, **keys)[0], noise_pair(same, LEVEL, **keys)[0])


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v"])
def test_all_members_of_a_group_share_its_noise(backend, prediction):
    """Rows k * B + g; a sample's bits are those that it has by itself, whatever K is."""
    keys = {"seed": 1, "draw": 2, "prediction": prediction}
    for members in (1, 2, 3, 5):
        x = latents((members * 3, 2, 700), torch.bfloat16)
        noisy, target = noise_pair(x, LEVEL, pair_ids=IDS, **keys)
        for row in range(members * 3):
            group = slice(row % 3, row % 3 + 1)
            alone = noise_pair(x[row : row + 1], LEVEL[group], pair_ids=IDS[group], **keys)
            assert torch.equal(noisy[row], alone[0][0]), (members, row)
            assert torch.equal(target[row], alone[1][0]), (members, row)


def test_the_noise_is_gaussian():
    """Moments and tail of 4 million numbers within five standard errors, halves and neighbours uncorrelated."""
    with set_backend("eager"):
        x = pair_noise((4, 1 << 20), seed=11, pair_ids=torch.arange(4), draw=0).double()
    n = x.numel()
    for power, want, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(x.pow(power).mean() - want) < 5 * math.sqrt(variance / n), power
    for bound in (1.0, 2.0, 3.0, 4.0):
        share = math.erfc(bound / math.sqrt(2))
        assert abs((x.abs() > bound).double().mean() - share) < 5 * math.sqrt(share / n), bound
    for one, other in (
        (x[0], x[1]),
        (x[:, 1:], x[:, :-1]),
        (x[:, 256:], x[:, :-256]),
        (x[:, 512:], x[:, :-512]),
    ):
        assert abs((one * other).mean()) < 5 / math.sqrt(one.numel())


def test_the_extreme_words_stay_finite():
    words = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    for radius in words:
        first, second = gaussians(radius.expand(5), words)
        assert first.isfinite().all()
        assert second.isfinite().all()
        assert max(first.abs().max(), second.abs().max()) < 6.8


@triton.jit
def gaussians_of_words(radius, angle, first, second, INTERPRETED: tl.constexpr):
    place = tl.arange(0, 64)
    radii, angles = tl.load(radius + place).to(tl.uint32), tl.load(angle + place).to(tl.uint32)
    one, other = kernel_gaussians(radii, angles, INTERPRETED)
    tl.store(first + place, one)
    tl.store(second + place, other)


def test_the_kernel_has_the_extreme_words_bits():
    """Signs of zeros too: the angle 0 of each quarter, the radius 0 of the largest words."""
    ends = torch.tensor([0, 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 128, 2**32 - 1], device=DEVICE)
    radius, angle = ends.repeat_interleave(8), ends.repeat(8)
    first, second = torch.empty(2, 64, device=DEVICE)
    gaussians_of_words[(1,)](radius, angle, first, second, interpreting(), enable_fp_fusion=False)
    for ours, theirs in zip((first, second), gaussians(radius, angle), strict=True):
        assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


def multiply_add(a, b, c):
    """fp32 numbers, the product exact and the sum rounded once: to odd in float64, from where the last one is right."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    away = np.where((error > 0) == (total > 0), 1, -1)
    bits = np.where((error != 0) & (bits % 2 == 0), bits + away, bits)
    return bits.view(np.float64).astype(np.float32)


def roots_wrong(mantissas, off: int) -> int:
    """Of `root`'s steps, written down again, from a reciprocal root that is `off` units in the last place away."""
    x = (mantissas + 0x3F800000).astype(np.int32).view(np.float32)  # 1 to 4
    y = ((1 / np.sqrt(x.astype(np.float64))).astype(np.float32).view(np.int32) + off).view(np.float32)
    r, half = x * y, y * np.float32(0.5)
    rest = multiply_add(-r, half, np.full_like(r, 0.5))
    r, half = multiply_add(r, rest, r), multiply_add(half, rest, half)
    r = multiply_add(multiply_add(-r, r, x), half, r)
    return int((r != np.sqrt(x.astype(np.float64)).astype(np.float32)).sum())


@pytest.mark.parametrize("off", range(-4, 5))
def test_a_root_is_right_from_any_near_reciprocal(off):
    mantissas = np.random.default_rng(off + 4).integers(0, 2**24, 20_000)
    assert roots_wrong(mantissas, off) == 0


@pytest.mark.slow
@pytest.mark.parametrize("off", range(-4, 5))
def test_every_root_is_right_from_any_near_reciprocal(off):
    assert sum(roots_wrong(np.arange(start, start + 2**20), off) for start in range(0, 2**24, 2**20)) == 0


def test_the_bits_are_pinned():
    """A change of these bits breaks every cache of reference errors: change them knowingly."""
    noise = noise_of((6,), pair_ids=torch.tensor([3]))
    assert noise.view(torch.int32)[0].tolist() == PINNED


PINNED = [-1078083825, 1069208895, -1092722671, 1013106496, 1074058745, -1086033788]
