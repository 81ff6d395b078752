"""The order of pairs, their draws and the toy's codec: pure functions, checked as such."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.config import DiffusionConfig
from pgdpo.data.prepared import StepBatches, pair_hash, position_to_item
from pgdpo.diffusion.draws import sigma_at, sigmas, uniform
from pgdpo.models.toy import ToyEncoders


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 5))
def test_every_pair_once_an_epoch(length, seed, epoch):
    items = [position_to_item(epoch * length + i, length=length, seed=seed) for i in range(length)]
    assert sorted(index for index, _ in items) == list(range(length))
    assert {draw for _, draw in items} == {epoch}


def test_epochs_and_seeds_are_shuffled_differently():
    order = lambda seed, epoch: [position_to_item(epoch * 50 + i, length=50, seed=seed)[0] for i in range(50)]  # noqa: E731
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.integers(3, 40), st.integers(0, 9))
def test_the_order_is_the_same_for_any_world_size_and_any_start(world, micro, length, start):
    steps, global_batch = 3, 8

    def of_rank(rank, world, micro):
        return list(
            StepBatches(
                length,
                seed=1,
                global_batch=global_batch,
                micro_batch=micro,
                rank=rank,
                world=world,
                steps=range(start, start + steps),
            )
        )

    alone = sum(of_rank(0, 1, global_batch), [])
    ranks = [of_rank(rank, world, micro) for rank in range(world)]
    per_step = len(ranks[0]) // steps
    together = [
        item
        for step in range(steps)
        for rank in ranks
        for batch in rank[step * per_step : (step + 1) * per_step]
        for item in batch
    ]
    assert together == alone
    assert alone == [
        position_to_item(start * global_batch + i, length=length, seed=1) for i in range(len(alone))
    ]


def test_timesteps_differ_between_pairs_draws_and_seeds():
    """Ranks that draw identical timesteps were a public trainer's defect."""
    config = DiffusionConfig()
    ids = torch.tensor([pair_hash(f"p{i}") for i in range(64)])
    one = sigmas(config, seed=0, pair_ids=ids, draws=torch.zeros(64, dtype=torch.long))
    assert len(set(one.tolist())) == 64
    assert not (one == sigmas(config, seed=0, pair_ids=ids, draws=torch.ones(64, dtype=torch.long))).any()
    assert not (one == sigmas(config, seed=1, pair_ids=ids, draws=torch.zeros(64, dtype=torch.long))).any()
    alone = sigmas(config, seed=0, pair_ids=ids[5:6], draws=torch.zeros(1, dtype=torch.long))
    assert alone[0] == one[5]


def test_draws_follow_their_distributions():
    from scipy import stats

    values = np.array([uniform(3, pair_hash(str(i)), 0, stream="timestep") for i in range(4000)])
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    config = DiffusionConfig(timestep_sampling="logit_normal", logit_mean=0.5, logit_std=1.3, shift=3.0)
    shifted = np.array([sigma_at(config, value) for value in values])
    plain = shifted / (3.0 - 2.0 * shifted)  # the shift undone
    assert stats.kstest(np.log(plain / (1 - plain)), "norm", args=(0.5, 1.3)).pvalue > 1e-3


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
    first, second, other = ToyEncoders().encode_prompts(["a red circle", "circle, a RED", "a red square"])
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.shape == (3, 64)
    with pytest.raises(Exception, match="takes 8"):
        ToyEncoders().encode_prompts(["one two three four five six seven eight nine"])
