"""The audio VAE's spectrogram, held against one that is computed another way: sums in float64, bands by their hertz."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from pgdpo.models.encoders.ltx2 import N_FFT, log_mel, mel_bands


def theirs(samples: np.ndarray, rate: int, hop: int, bins: int) -> np.ndarray:
    """By transformers, of one channel: `[frames, bins]`."""
    bank = mel_filter_bank(N_FFT // 2 + 1, bins, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    window = window_function(N_FFT, "hann", periodic=True)
    found = spectrogram(
        samples.astype(np.float64), window, N_FFT, hop, power=1.0, mel_filters=bank, mel_floor=1e-5, log_mel="log"
    )  # fmt: skip
    return found.T


@settings(max_examples=10, deadline=None)
@given(
    rate=st.sampled_from([8000, 16000, 44100]),
    hop=st.sampled_from([100, 160, 441]),
    bins=st.sampled_from([8, 64, 80]),
    length=st.integers(N_FFT, 9000),
    seed=st.integers(0, 100),
)
def test_the_spectrogram_is_the_one_of_an_independent_implementation(rate, hop, bins, length, seed):
    draws = np.random.default_rng(seed)
    samples = (draws.standard_normal((2, length)) * draws.uniform(1e-3, 0.3)).astype(np.float32)
    found = log_mel(torch.from_numpy(samples), rate, hop=hop, bins=bins)
    assert found.shape == (2, 1 + length // hop, bins)
    for channel in range(2):
        np.testing.assert_allclose(
            found[channel].numpy(), theirs(samples[channel], rate, hop, bins), atol=2e-3
        )


def test_silence_is_the_floor_and_a_tone_is_loudest_in_its_band():
    rate, hop, bins = 16000, 160, 64
    assert torch.all(log_mel(torch.zeros(1, 4000), rate, hop=hop, bins=bins) == torch.tensor(1e-5).log())
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(8000) / rate)[None]
    mel = log_mel(tone, rate, hop=hop, bins=bins)[0]
    # 1 kHz is 15 mel of 15 + 27 ln(8) / ln(6.4) = 45.2: band 15 / 45.2 * 65 of those that are counted from 1.
    assert mel[10:-10].mean(0).argmax() + 1 == pytest.approx(15 / 45.245 * 65, abs=0.6)


def test_a_band_weighs_what_every_other_does():
    """Slaney's norm: triangles of one area in hertz."""
    bands = mel_bands(16000, 8)
    np.testing.assert_allclose(bands.sum(0).numpy() * 8000 / (N_FFT // 2), 1, rtol=2e-2)
