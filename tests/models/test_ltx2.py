"""LTX-2's own: sound beside the picture, a sound that isn't there, and the length of what is."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.config import SampleSettings
from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from pgdpo.video import Sound, SoundFormat
from tests.models.families import KINDS
from tests.models.road import CPU, PROMPT, conditioning_of, open_pipeline

ALONE = KINDS["ltx2 alone"]
VERSIONS = {"2.0": KINDS["ltx2"], "2.3": KINDS["ltx2 2.3"], "2.5": KINDS["ltx2 2.5"]}


def hearing(saved, version: str = "2.0", **keys):
    kind = VERSIONS[version]
    return kind.open(saved(kind.save), **keys)


def drawn(family, count: int = 2, seed: int = 0):
    """(noisy latents of both streams, conditioning at random)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = family.stream_shapes(*ALONE.size)
    noisy = {name: torch.randn(count, *shape, generator=generator) for name, shape in shapes.items()}
    example = family.example_conditioning(count, shapes["video"])
    return noisy, {name: torch.randn(each.shape, generator=generator) for name, each in example.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_without_sound_the_picture_is_what_it_is_beside_any_sound_that_it_does_not_hear(version, saved):
    """To the bit; and where it hears it, it is another."""
    family = hearing(saved, version)
    silent = hearing(saved, version)
    silent.streams = ("video",)
    transformer = family.load_transformer(dtype=torch.float32)
    sigma = torch.tensor([0.3, 0.8])
    noisy, told = drawn(family)
    alone = silent.predict(transformer, noisy["video"], sigma, told)
    with torch.no_grad():
        lacking = family.predict(transformer, {"video": noisy["video"]}, sigma, told)
        hook = transformer.register_forward_pre_hook(isolated, with_kwargs=True)
        beside = family.predict(transformer, noisy, sigma, told)
        hook.remove()
        together = family.predict(transformer, noisy, sigma, told)
    assert lacking.keys() == {"video"} and torch.equal(lacking["video"], alone)
    assert torch.equal(beside["video"], alone)
    assert (together["video"] - alone).abs().max() > 1e-5
    assert together["audio"].shape == noisy["audio"].shape


def isolated(module, inputs, told):
    return inputs, {**told, "isolate_modalities": True}


def test_each_stream_has_a_gradient_of_the_other_where_they_hear_each_other(saved):
    """A loss on the sound alone moves the picture's layers, and the other way round; without sound neither."""
    family = hearing(saved)
    transformer = family.load_transformer(dtype=torch.float32)
    noisy, told = drawn(family)
    for stream, other in (("audio", "attn1"), ("video", "audio_attn1")):
        transformer.zero_grad()
        family.predict(transformer, noisy, torch.tensor([0.3, 0.8]), told)[stream].square().mean().backward()
        assert getattr(transformer.transformer_blocks[0], other).to_q.weight.grad.abs().max() > 0
    transformer.zero_grad()
    alone = family.predict(transformer, noisy["video"], torch.tensor([0.3, 0.8]), told)
    alone.square().mean().backward()
    heard = transformer.transformer_blocks[0].audio_attn1.to_q.weight.grad
    assert heard is None or heard.abs().max() == 0


@settings(max_examples=25, deadline=None)
@given(
    seconds=st.floats(0.1, 0.5),
    frames=st.sampled_from([1, 9, 17, 25]),
    rate=st.sampled_from([8.0, 24.0, 25.0, 30.0]),
)
def test_the_sound_is_as_long_as_the_pipeline_makes_it(frames, rate, seconds, saved):
    """However long the track is: its end is cut off, or it goes on in silence."""
    family = hearing(saved, frame_rate=rate)
    pipeline = open_pipeline(ALONE, saved(ALONE.save))
    per_second = pipeline.audio_sampling_rate / pipeline.audio_hop_length / 4
    expected = round(frames / rate * per_second)
    assert family.stream_shapes(frames, 64, 96)["audio"] == (2, expected, 2)
    if expected:
        sound = Sound(np.zeros((2, round(seconds * 16000)), np.float32), 16000)
        assert family.load_encoders(CPU).encode_audio(sound, frames).shape == (2, expected, 2)


def a_sound(seconds: float, seed: int = 0) -> Sound:
    draws = np.random.default_rng(seed)
    return Sound(draws.uniform(-0.5, 0.5, (2, round(seconds * 16000))).astype(np.float32), 16000)


def test_a_latent_hears_nothing_that_is_behind_it(saved):
    """What the clip's last latent sees ends with the clip, up to the window of a spectrogram's frame."""
    family = hearing(saved, frame_rate=8)
    encoders = family.load_encoders(CPU)
    assert encoders.sound == SoundFormat(16000, 2)
    one, other = a_sound(2.0), a_sound(2.0, seed=1)
    length = family.sound_to_latents(9)[1]
    seen = 4 * (length - 1) * 160 + 512
    mixed = Sound(np.concatenate([one.samples[:, :seen], other.samples[:, seen:]], axis=1), 16000)
    short = Sound(one.samples[:, :seen], 16000)
    expected = encoders.encode_audio(one, 9)
    for same in (mixed, short):
        torch.testing.assert_close(encoders.encode_audio(same, 9), expected, rtol=1e-4, atol=1e-5)
    assert (encoders.encode_audio(other, 9) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("version", VERSIONS)
def test_latents_of_sound_are_what_the_pipeline_decodes(version, saved):
    """In the place of the pipeline's last ones: they come to its audio VAE as that encoded them, and to its sound."""
    kind, family = VERSIONS[version], hearing(saved, version)
    pipeline = open_pipeline(kind, saved(kind.save))
    encoders = family.load_encoders(CPU)
    latents = encoders.encode_audio(a_sound(1.125), 9)
    vae = pipeline.audio_vae
    raw = pipeline._unpack_audio_latents(
        pipeline._denormalize_audio_latents(
            pipeline._pack_audio_latents(latents[None]), vae.latents_mean, vae.latents_std
        ),
        *latents.shape[1:],
    )
    with torch.no_grad():
        mel = vae.decode(raw, return_dict=False)[0]
        theirs = pipeline.vocoder(mel)[0]
    found = encoders.decode_audio(latents)
    assert found.rate == (24000 if version == "2.0" else 48000)
    torch.testing.assert_close(torch.from_numpy(found.samples), theirs, rtol=1e-5, atol=1e-6)
    # 4 frames of the spectrogram a latent but for the first, of 10 ms each.
    assert found.seconds == pytest.approx((4 * latents.shape[1] - 3) / 100, abs=0.02)


def test_pairs_with_other_sound_are_told_apart(saved):
    families = [ALONE.open(saved(ALONE.save)), hearing(saved), hearing(saved, frame_rate=12)]
    encoders = [family.load_encoders(CPU) for family in families]
    assert len({each.fingerprint for each in encoders}) == 3
    assert [each.sound is None for each in encoders] == [True, False, False]
    names = [encoder.encode_prompts([PROMPT])[0].keys() for encoder in encoders]
    assert names == [{"prompt"}, {"prompt", "audio_prompt"}, {"prompt", "audio_prompt"}]


@pytest.mark.parametrize(
    ("fps", "audio", "words"),
    [
        (
            "own",
            True,
            "told 8 frames .*, by which the sound .*: set model.frame_rate to the clips' rate and leave",
        ),
        (
            24.0,
            True,
            "data.fps is 24.0 and the model is told 8 .*: set model.frame_rate to 24 and leave data.fps out",
        ),
        (24.0, False, r"data.fps is 24.0 .*\(model.frame_rate\): set model.frame_rate to 24 and"),
        ("own", False, None),
        (8.0, True, None),
        (None, True, None),
    ],
)
def test_clips_are_shown_at_the_rate_that_their_sound_has(fps, audio, words, saved):
    family = ALONE.open(saved(ALONE.save), audio=audio, frame_rate=8)
    data = SimpleNamespace(fps=fps)
    if words is None:
        family.check_fps(data)
    else:
        with pytest.raises(InputError, match=words):
            family.check_fps(data)


def test_the_recipes_streams_are_known_without_torch():
    for recipe, audio in (("ltx2", True), ("ltx2_3", True), ("ltx2_5", False)):
        model = load_config(f"{recipe}.yaml", [f"model.audio={str(audio).lower()}"]).model
        assert model.streams == (("video", "audio") if audio else ("video",)) and model.fps == 24


def test_sampling_draws_from_no_generator_of_torchs(saved):
    """The pipeline draws noise that it multiplies by 0: a run's own draws go on as if it hadn't."""
    family = hearing(saved)
    noise, _ = drawn(family, 1)
    told = conditioning_of(family, [PROMPT])
    transformer = family.load_transformer(dtype=torch.float32)
    before = torch.get_rng_state()
    found = family.sample(transformer, noise, told, told, SampleSettings(2, 1.0))
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: each.shape for name, each in found.items()} == {n: e.shape for n, e in noise.items()}
    again = family.sample(transformer, noise, told, told, SampleSettings(2, 3.0))
    assert (again["audio"] - found["audio"]).abs().max() > 1e-4


def test_a_picture_is_compressed_as_the_pipeline_compresses_it(saved):
    """By H.264: 33 before LTX-2.5, 18 for it, by the class of the text encoder that the folder names."""
    crf = {
        version: kind.open(saved(kind.save), task="image_to_video").load_encoders(CPU).crf
        for version, kind in VERSIONS.items()
    }
    assert crf == {"2.0": 33, "2.3": 33, "2.5": 18}
    index = json.loads((saved(VERSIONS["2.5"].save) / "model_index.json").read_text())
    assert index["text_encoder"][1] == "Gemma4UnifiedForConditionalGeneration"
