"""The base model that ships with the sounding toy: LTX-2 on the toy's encoders."""

import numpy as np
import pytest
import torch

from pgdpo.config import SampleSettings
from pgdpo.config.families import family_class
from pgdpo.models import open_family
from pgdpo.toy.scene import example
from pgdpo.toy.tone import play, tone_of

SIZE = (8, 24, 24)


def opened(**keys):
    settings = family_class("ltx2").settings
    return open_family(settings(family="ltx2", path="toy_sound", encoders="toy", **keys))


@pytest.fixture(scope="module")
def family():
    return opened()


@pytest.fixture(scope="module")
def transformer(family):
    return family.load_transformer(dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def clip(family) -> dict[str, torch.Tensor]:
    """Latents and words of one flawless clip."""
    pair = example(0, 0, num_frames=SIZE[0])
    encoders = family.load_encoders(torch.device("cpu"))
    words = encoders.encode_prompts([pair.prompt])[0]["prompt"]
    prompt = torch.zeros(1, encoders.text_length, encoders.text_dim)
    prompt[0, : len(words)] = words
    pixels = np.zeros((*SIZE, 3), np.uint8) + 20
    return {
        "video": encoders.encode_video(pixels)[None],
        "audio": encoders.encode_audio(play(tone_of(pair.chosen), 8), SIZE[0])[None],
        "prompt": prompt,
    }


def test_streams_have_the_encoders_shapes(family, clip):
    assert {name: tuple(clip[name].shape[1:]) for name in family.streams} == family.stream_shapes(*SIZE)
    alone = opened(audio=False)
    assert alone.stream_shapes(*SIZE) == {"video": (48, 8, 6, 6)}
    assert alone.load_encoders(torch.device("cpu")).sound is None


@torch.no_grad()
def test_it_knows_tones_from_noise(family, transformer, clip):
    """At half the noise it predicts most of what it took out, of the tone as of the picture."""
    noise = {
        name: torch.randn(clip[name].shape, generator=torch.Generator().manual_seed(0))
        for name in family.streams
    }
    noisy = {name: (clip[name] + noise[name]) / 2 for name in family.streams}
    found = family.predict(transformer, noisy, torch.tensor([0.5]), {"prompt": clip["prompt"]})
    for name in family.streams:
        target = noise[name] - clip[name]
        assert (found[name] - target).square().mean() < 0.35 * target.square().mean()


@torch.no_grad()
def test_it_samples_both_streams_or_the_picture_alone(family, transformer, clip):
    noise = {name: torch.zeros_like(clip[name]) for name in family.streams}
    text = {"prompt": clip["prompt"]}
    found = family.sample(transformer, noise, text, text, SampleSettings(2, 2.0))
    assert {name: found[name].shape for name in found} == {name: clip[name].shape for name in noise}
    alone = opened(audio=False).sample(transformer, noise["video"], text, text, SampleSettings(2, 2.0))
    assert alone.shape == clip["video"].shape and not torch.equal(alone, found["video"])
