"""What may befall a clip's sound: each fault is there, is of its kind, and is all there is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.making.sound import SOUND_FAULTS, heard, sound_clip, sound_drop, sound_shift
from pgdpo.video import Sound

clips = st.builds(
    lambda seed, rate, channels, seconds: Sound(
        np.random.default_rng(seed).uniform(-0.4, 0.4, (channels, round(rate * seconds))).astype(np.float32),
        rate,
    ),
    st.integers(0, 99),
    st.sampled_from([8000, 24000]),
    st.integers(1, 2),
    st.floats(0.5, 4),
)
seeds = st.integers(0, 2**32)


def other():
    return Sound(np.full((1, 3), 0.25, np.float32), 8000)


@pytest.mark.quick
@given(clips, seeds, st.sampled_from([name for name in SOUND_FAULTS if name != "sound_swap"]))
@settings(max_examples=60, deadline=None)
def test_a_fault_changes_a_sound_and_nothing_of_its_form(sound, seed, name):
    before = sound.samples.copy()
    bad = SOUND_FAULTS[name](sound, np.random.default_rng(seed), other)
    assert bad.samples.shape == before.shape and bad.samples.dtype == np.float32 and bad.rate == sound.rate
    assert np.abs(bad.samples - before).mean() > 0.01 * np.abs(before).mean()
    assert np.abs(bad.samples).max() <= np.abs(before).max() * 1.00001 and heard(bad)
    assert (sound.samples == before).all()


@given(clips, seeds)
@settings(max_examples=30, deadline=None)
def test_a_shift_is_of_a_fifth_of_a_second_to_one_and_loses_but_the_seam(sound, seed):
    bad = sound_shift(sound, np.random.default_rng(seed), other)
    spectra = [np.fft.rfft(each.samples[0].astype(float)) for each in (bad, sound)]
    count = sound.samples.shape[1]
    lag = int(np.argmax(np.fft.irfft(spectra[0] * spectra[1].conj(), count)))
    by = min(lag, count - lag) / sound.rate
    assert min(0.2, sound.seconds / 2) - 1e-3 <= by <= min(1, sound.seconds / 2) + 1e-3
    moved = np.roll(sound.samples, lag, axis=1)
    faded = np.flatnonzero((bad.samples != moved).any(axis=0))
    assert np.ptp(faded) <= 0.0101 * sound.rate and lag - faded[0] <= 0.005 * sound.rate + 1


def test_a_shift_goes_both_ways():
    click = np.zeros((1, 48000), np.float32)
    click[0, 24000] = 1
    sound = Sound(click, 8000)  # six seconds, in whose middle something is heard
    places = {int(np.argmax(sound_shift(sound, np.random.default_rng(n), other).samples)) for n in range(30)}
    assert min(places) < 24000 - 1600 and max(places) > 24000 + 1600


@given(clips, seeds)
@settings(max_examples=30, deadline=None)
def test_what_is_cut_off_is_flat_and_as_loud(sound, seed):
    bad = sound_clip(sound, np.random.default_rng(seed), other).samples
    flat = np.abs(np.abs(bad) - np.abs(bad).max()) < 1e-6
    assert flat.mean() > 0.5  # of even noise, 70 to 95%
    assert np.square(bad).mean() == pytest.approx(np.square(sound.samples).mean(), rel=1e-4)
    assert (np.sign(bad) == np.sign(sound.samples)).all()


@given(clips, seeds)
@settings(max_examples=30, deadline=None)
def test_drop_outs_are_holes_in_what_is_heard(sound, seed):
    quiet = 9 * sound.samples.shape[1] // 10
    sound.samples[:, :quiet] = 0
    bad = sound_drop(sound, np.random.default_rng(seed), other).samples
    changed = (bad != sound.samples).any(axis=0)
    assert changed[quiet:].mean() > 0.02 and not changed[:quiet].any()
    assert (np.abs(bad) <= np.abs(sound.samples)).all()
    silent = changed & (bad == 0).all(axis=0)
    assert silent.sum() > 0.015 * sound.rate  # a whole one is 40 ms, and may begin in the silence


def test_a_wrong_track_is_the_others():
    given = Sound(np.zeros((1, 3), np.float32), 8000)
    swapped = SOUND_FAULTS["sound_swap"](given, np.random.default_rng(0), other)
    assert swapped.samples[0, 0] == 0.25


def test_silence_is_not_heard():
    assert not heard(Sound(np.full((2, 100), 1e-4, np.float32), 8000))
    assert not heard(Sound(np.zeros((2, 0), np.float32), 8000)) and heard(other())
