"""The toy world's tones: what they sound like, the codec there and back, and a harmony that hears every fault."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.config import DataConfig
from pgdpo.data.preparing.made_of import named_source
from pgdpo.models.family import toy_encoders
from pgdpo.rows.manifest import scan_manifest
from pgdpo.toy.clips import render_dataset
from pgdpo.toy.harmony import harmony
from pgdpo.toy.reward import true_reward
from pgdpo.toy.scene import SHAPES, example, group, prompt_words, render
from pgdpo.toy.tone import (
    FAULTS,
    SOUND_DEFECTS,
    TIMBRES,
    Tone,
    faults_of,
    play,
    tone_of,
    voiced,
    with_sound_defect,
)
from pgdpo.video import Sound, SoundFormat, probe_video, read_sound, read_video

FPS, RATE = 8, 16000
FEW = {"train_pairs": 3, "held_out_pairs": 2, "seed": 7}


def rows(manifest) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def pitches(sound: Sound) -> np.ndarray:
    """Frequency in Hz in the middle of each frame, by the phase that a band about the fundamental goes through."""
    wave = sound.samples[0].astype(np.float64)
    spectrum = np.fft.fft(wave)
    frequency = np.fft.fftfreq(len(wave), 1 / RATE)
    found = []
    for frame in range(len(wave) // (RATE // FPS)):
        piece = np.zeros_like(wave)
        first = frame * RATE // FPS
        piece[first : first + RATE // FPS] = (
            wave[first : first + RATE // FPS] * np.hanning(RATE // FPS + 2)[1:-1]
        )
        spectrum = np.fft.fft(piece)
        loudest = frequency[: len(wave) // 2][np.abs(spectrum[: len(wave) // 2]).argmax()]
        band = np.where(np.abs(frequency - loudest) < 0.2 * loudest, spectrum, 0)
        phase = np.unwrap(np.angle(np.fft.ifft(band)))
        middle = first + RATE // FPS // 2
        found.append((phase[middle + 100] - phase[middle - 100]) * RATE / 200 / (2 * np.pi))
    return np.array(found)


def heard(index: int, defect: str, strength: float, seed: int = 3) -> float:
    scene = example(seed, index).chosen
    tone = with_sound_defect(np.random.default_rng([seed, index]), tone_of(scene), defect, strength)
    return harmony(play(tone, FPS), scene.position[:, 1], prompt_words(scene.prompt)[2])


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 10**6))
def test_the_pitch_follows_the_height_and_the_phase_never_breaks(seed, index):
    scene = example(seed, index).chosen
    sound = play(tone_of(scene), FPS)
    assert sound.samples.dtype == np.float32 and sound.samples.shape == (1, 12 * RATE // FPS)
    assert np.abs(sound.samples).max() <= 0.4 * np.sqrt(2)
    told = 440 * 2 ** (3 * (0.5 - scene.position[:, 1]))
    assert np.abs(np.log2(pitches(sound) / told))[1:-1].max() < 0.03
    # A break would be a leap: between two samples no sine of 4 x 1100 Hz moves further than this.
    assert np.abs(np.diff(sound.samples[0])).max() < 2 * np.pi * 4 * 1100 / RATE * 0.4 * np.sqrt(2)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), shape=st.sampled_from(SHAPES), frames=st.integers(3, 14))
def test_the_codec_gives_the_tone_back(seed, shape, frames):
    rng = np.random.default_rng(seed)
    slope = rng.uniform(-0.12, 0.12)  # octaves a frame, as far as an object moves
    octave = rng.uniform(-0.3, 0.3) + slope * (np.arange(frames) - frames / 2)
    sound = play(Tone(octave, TIMBRES[shape]), FPS)
    encoders = toy_encoders(sounding=True)
    assert encoders.sound == SoundFormat(RATE, 1)
    latents = encoders.encode_audio(sound, frames)
    assert latents.shape == encoders.sound_to_latents(frames) == (4, 2 * frames, 16)
    assert latents.dtype == torch.float32 and torch.equal(latents, encoders.encode_audio(sound, frames))
    again = encoders.decode_audio(latents)
    assert again.samples.shape == sound.samples.shape and again.rate == RATE
    assert (
        np.abs(np.log2(pitches(again) / (440 * 2**octave)))[1:-1].max() < 0.04
    )  # octaves: less than 3 percent
    height = 0.5 - octave / 3
    assert harmony(again, height, shape) > 0.8


def test_latents_are_about_as_large_as_noise():
    encoders = toy_encoders(sounding=True)
    found = torch.stack(
        [encoders.encode_audio(play(tone_of(example(0, i).chosen), FPS), 12) for i in range(24)]
    )
    assert abs(found.mean()) < 0.3 and 0.7 < found.std() < 1.3


def test_what_is_no_tone_is_decoded_all_the_same():
    encoders = toy_encoders(sounding=True)
    for latents in (torch.randn(4, 16, 16), torch.full((4, 16, 16), -5.0), torch.zeros(4, 16, 16)):
        sound = encoders.decode_audio(latents)
        assert sound.samples.shape == (1, RATE) and np.isfinite(sound.samples).all()
    assert not encoders.decode_audio(torch.full((4, 16, 16), -5.0)).samples.any()


@pytest.mark.parametrize("defect", SOUND_DEFECTS)
def test_harmony_falls_with_every_defects_strength(defect):
    means = [
        np.mean([heard(index, defect, strength) for index in range(12)])
        for strength in (0, 0.15, 0.4, 0.7, 1)
    ]
    assert np.all(np.diff(means) < 0) and means[0] > 0.9 and means[-1] < 0.65


def test_harmony_hears_silence_noise_and_another_shape():
    scene = example(0, 0).chosen
    height, shape = scene.position[:, 1], prompt_words(scene.prompt)[2]
    tone = tone_of(scene)
    own = play(tone, FPS)
    noise = np.random.default_rng(0).normal(0, 0.2, own.samples.shape).astype(np.float32)
    assert harmony(own, height, shape) > 0.9
    assert harmony(Sound(0 * own.samples, RATE), height, shape) == 0
    assert harmony(Sound(noise, RATE), height, shape) < 0.1
    noisy = [harmony(Sound(own.samples + share * noise, RATE), height, shape) for share in (0.1, 0.5, 1, 3)]
    assert np.all(np.diff(noisy) < 0)
    for other in set(SHAPES) - {shape}:
        assert harmony(own, height, other) < 0.6
    for wrong in (
        Sound(own.samples, 8000),
        Sound(own.samples[:, 100:], RATE),
        Sound(own.samples.repeat(2, 0), RATE),
    ):
        with pytest.raises(ValueError, match="sound: 1 channel, 16000 a second"):
            harmony(wrong, height, shape)


def test_the_reward_has_a_fourth_dimension_where_there_is_sound():
    pair = example(0, 3)
    clip, sound = render(pair.chosen), play(tone_of(pair.chosen), FPS)
    silent, sounding = true_reward(clip, pair.prompt), true_reward(clip, pair.prompt, sound)
    parts = (sounding.smoothness, sounding.constancy, sounding.obedience)
    assert parts == (silent.smoothness, silent.constancy, silent.obedience)
    assert sounding.total == pytest.approx((np.prod(parts) * sounding.harmony) ** 0.25)
    other = true_reward(clip, pair.prompt, play(tone_of(example(0, 4).chosen), FPS))
    assert other.harmony < sounding.harmony and other.total < sounding.total


def test_rows_say_which_part_is_better(tmp_path):
    train, held_out = render_dataset(tmp_path, train_pairs=10, held_out_pairs=2, sound=True)
    assert scan_manifest(train)[1] == []
    found = set()
    for number, row in enumerate(rows(train)):
        faults, defect = faults_of(0, number, "train")
        found.add(faults)
        assert row["dimensions"] == {
            "video": 0.5 if faults == "sound" else 1,
            "audio": 0.5 if faults == "picture" else 1,
        }
        assert row["defect"].endswith(defect) == (faults != "picture")
        assert row["scores"]["chosen"]["total"] > row["scores"]["rejected"]["total"]
        info = probe_video(train.parent / row["rejected"])
        assert (info.sound.codec, info.sound.rate, info.sound.channels) == ("aac", RATE, 1)
        sound = read_sound(info, 0, 1.5, SoundFormat(RATE, 1))
        measured = true_reward(read_video(train.parent / row["rejected"]), row["prompt"], sound)
        assert row["scores"]["rejected"]["harmony"] == measured.harmony
        falls = row["scores"]["chosen"]["harmony"] - row["scores"]["rejected"]["harmony"]
        # A torn picture takes presence, and so a share of all dimensions, with it.
        assert (
            abs(falls) < (0.2 if "tear" in row["defect"] else 0.1) if faults == "picture" else falls > 0.005
        )
    assert found == set(FAULTS)


def test_the_picture_is_the_same_with_sound(tmp_path):
    silent, sounding = (
        render_dataset(tmp_path / name, **FEW, sound=sound)[0]
        for name, sound in (("silent", False), ("sounding", True))
    )
    for index, (row, other) in enumerate(zip(rows(silent), rows(sounding), strict=True)):
        pair = example(7, index)
        scene, tone = voiced(pair.chosen, pair.rejected, pair.strength, seed=7, index=index, split="train")
        faults, _ = faults_of(7, index, "train")
        assert scene is (pair.chosen if faults == "sound" else pair.rejected)
        assert (
            np.array_equal(tone.octave, tone_of(scene).octave) == (faults == "picture")
            or "timbre" in other["defect"]
        )
        assert (row["prompt"], row["strength"]) == (other["prompt"], other["strength"])
        frames = [
            read_video(manifest.parent / row["chosen"])
            for manifest, row in ((silent, row), (sounding, other))
        ]
        assert np.array_equal(*frames)
        assert row["chosen"].split("/")[1] != other["chosen"].split("/")[1]  # another digest


def test_groups_have_tones_of_rising_damage(tmp_path):
    train, _ = render_dataset(tmp_path, **FEW, samples=3, sound=True)
    assert scan_manifest(train)[1] == []
    for index, row in enumerate(rows(train)):
        scores = [each["score"] for each in row["samples"]]
        assert scores == sorted(scores, reverse=True) and all(
            "harmony" in each["scores"] for each in row["samples"]
        )
        drawn = group(7, index, 3)
        tones = [
            voiced(drawn.scenes[0], scene, strength, seed=7, index=index, split="train", grade=grade)[1]
            for grade, (scene, strength) in enumerate(
                zip(drawn.scenes[1:], drawn.strengths[1:], strict=True), 1
            )
        ]
        faults, _ = faults_of(7, index, "train")
        same = np.array_equal(tones[0].octave, tones[1].octave) and np.array_equal(
            tones[0].harmonics, tones[1].harmonics
        )
        assert not same or faults == "picture"


def test_prepared_data_know_the_sounding_world():
    silent, sounding = (
        DataConfig.model_validate({"train": "toy", "toy": toy}) for toy in ({}, {"sound": True})
    )
    known = {"format": 1, "seed": 0, "pairs": 96}
    assert [named_source(data, "train")["toy"] for data in (silent, sounding)] == [
        known,
        known | {"sound": 1},
    ]
