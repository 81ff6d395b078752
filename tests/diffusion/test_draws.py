"""The draws of pairs and the toy's codec: pure functions, checked as such. Their order: test_order.py."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.config import DiffusionConfig
from pgdpo.data.prepared import pair_hash
from pgdpo.diffusion.draws import sigma_at, sigmas, uniform
from pgdpo.toy.encoders import ToyEncoders

pytestmark = pytest.mark.quick


def test_timesteps_differ_between_pairs_draws_and_seeds():
    """Ranks that draw identical timesteps were a public trainer's defect."""
    config = DiffusionConfig()
    ids = torch.tensor([pair_hash(f"p{i}") for i in range(64)])
    whole = {"within": (0.0, 1.0)}
    one = sigmas(config, seed=0, pair_ids=ids, draws=torch.zeros(64, dtype=torch.long), **whole)
    assert len(set(one.tolist())) == 64
    assert not (
        one == sigmas(config, seed=0, pair_ids=ids, draws=torch.ones(64, dtype=torch.long), **whole)
    ).any()
    assert not (
        one == sigmas(config, seed=1, pair_ids=ids, draws=torch.zeros(64, dtype=torch.long), **whole)
    ).any()
    alone = sigmas(config, seed=0, pair_ids=ids[5:6], draws=torch.zeros(1, dtype=torch.long), **whole)
    assert alone[0] == one[5]


def test_draws_follow_their_distributions():
    from scipy import stats

    values = np.array([uniform(3, pair_hash(str(i)), 0, stream="timestep") for i in range(4000)])
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    config = DiffusionConfig(timestep_sampling="logit_normal", logit_mean=0.5, logit_std=1.3, shift=3.0)
    shifted = np.array([sigma_at(config, value) for value in values])
    plain = shifted / (3.0 - 2.0 * shifted)  # the shift undone
    assert stats.kstest(np.log(plain / (1 - plain)), "norm", args=(0.5, 1.3)).pvalue > 1e-3


@pytest.mark.parametrize("within", [(0.0, 0.875), (0.9, 1.0)])
@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_draws_of_one_expert_are_the_distribution_on_its_share(sampling, within):
    """Neither clamped nor squeezed: what is left of the whole distribution where the rest is thrown away."""
    from scipy import stats

    config = DiffusionConfig(timestep_sampling=sampling, logit_mean=0.3, shift=5.0)
    quantiles = (np.arange(20000) + 0.5) / 20000
    whole = np.array([sigma_at(config, quantile) for quantile in quantiles])
    kept = whole[(whole >= within[0]) & (whole < within[1])]
    ours = np.array([sigma_at(config, quantile, within) for quantile in quantiles])
    assert within[0] <= ours.min() and ours.max() <= within[1]
    assert stats.ks_2samp(kept, ours).statistic < 2 / len(kept)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_the_patch_codec_is_lossless(frames, height, width, seed):
    clip = np.random.default_rng(seed).integers(0, 256, (frames, 4 * height, 4 * width, 3), dtype=np.uint8)
    codec = ToyEncoders()
    latents = codec.encode_video(clip)
    assert latents.shape == (48, frames, height, width)
    assert np.array_equal(codec.decode_video(latents), clip)


def test_a_latent_pixel_holds_its_own_pixels():
    clip = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    clip[1, 4:, :4] = 255
    bright = ToyEncoders().encode_video(clip).mean(0)
    assert (bright > bright.min()).nonzero().tolist() == [[1, 1, 0]]


def test_words_are_hashed_as_a_bag():
    encoded = ToyEncoders().encode_prompts(["a red circle", "circle, a RED", "a red square"])
    first, second, other = (conditioning["prompt"] for conditioning in encoded)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (3, 64)
    with pytest.raises(Exception, match="takes 8"):
        ToyEncoders().encode_prompts(["one two three four five six seven eight nine"])
