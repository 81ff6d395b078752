"""LTX-Video on a tiny pipeline of its own classes: what training sees is what the pipeline sees."""

import numpy as np
import pytest
import torch

from pgdpo.checkpoints.identity import base_identity
from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from pgdpo_kernels import noise_pair, pair_noise
from tests.models.tiny_pipelines import (
    PROMPT,
    Road,
    conditioning_of,
    generate,
    open_tiny,
    record,
    same_calls,
    save_tiny_ltx,
)

SIZE = (9, 64, 96)  # frames, height, width
IDS = torch.tensor([11, 12])


@pytest.fixture(scope="module")
def folder(saved):
    return saved(save_tiny_ltx)


@pytest.fixture(scope="module")
def pipeline(folder):
    from diffusers import LTXPipeline

    return LTXPipeline.from_pretrained(folder)


def packed(latents):
    """`[N, C, F, H, W]` -> tokens: one latent pixel, one token."""
    return latents.flatten(2).transpose(1, 2)


def test_noisy_latents_and_target_are_the_schedulers(folder, pipeline):
    family = open_tiny("ltx", folder)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(10, mu=1.2)
    sigma = scheduler.sigmas[[2, 7]]
    latents = torch.randn(4, *family.latent_shape(*SIZE))
    noisy, target = noise_pair(
        latents, family.level(sigma), seed=3, pair_ids=IDS, draw=0, prediction=family.prediction
    )
    noise = pair_noise((2, *latents.shape[1:]), seed=3, pair_ids=IDS, draw=0).repeat(2, 1, 1, 1, 1)
    theirs = scheduler.scale_noise(latents, scheduler.timesteps[[2, 7, 2, 7]], noise)
    torch.testing.assert_close(noisy, theirs, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(noisy - sigma.repeat(2).view(-1, 1, 1, 1, 1) * target, latents)


@pytest.mark.parametrize("frame_rate", [None, 8])
def test_the_transformer_is_called_as_the_pipeline_calls_it(folder, pipeline, frame_rate):
    family = open_tiny("ltx", folder, frame_rate=frame_rate)
    noise = torch.randn(1, *family.latent_shape(*SIZE))
    calls = record(pipeline.transformer)
    told = {} if frame_rate is None else {"frame_rate": frame_rate}  # else the pipeline's default
    try:
        theirs = generate(
            pipeline, packed(noise), height=64, width=96, num_frames=9, guidance_scale=1.0, **told
        )
        conditioning = conditioning_of(family, [PROMPT])
        for arguments, prediction in list(calls):
            ours = {}

            def transformer(ours=ours, **keywords):
                ours.update(keywords)
                return pipeline.transformer(**keywords)

            noisy = arguments["hidden_states"].transpose(1, 2).view_as(noise)
            with torch.no_grad():
                mine = family.predict(transformer, noisy, arguments["timestep"] / 1000, conditioning)
            same_calls(ours, arguments, text_mask=conditioning["prompt_mask"])
            torch.testing.assert_close(packed(mine), prediction, rtol=1e-5, atol=1e-6)
    finally:
        pipeline.transformer._forward_hooks.clear()
    sampled = family.sample(
        pipeline.transformer, noise, conditioning, conditioning, steps=2, guidance_scale=1.0
    )
    torch.testing.assert_close(packed(sampled), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("timestep_conditioning", [False, True])
def test_latents_are_what_the_pipeline_decodes(saved, timestep_conditioning):
    from diffusers import LTXPipeline

    folder = saved(save_tiny_ltx, timestep_conditioning=timestep_conditioning)
    pipeline = LTXPipeline.from_pretrained(folder)
    family = open_tiny("ltx", folder)
    encoders = family.load_encoders(torch.device("cpu"))
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
    latents = encoders.encode_video(frames)
    assert latents.shape == family.latent_shape(*SIZE)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        raw = pipeline.vae.encode(pixels).latent_dist.mode()[0]
    mean, std = torch.linspace(-0.5, 0.5, 8), torch.linspace(0.5, 2.0, 8)
    torch.testing.assert_close(
        latents, (raw - mean.view(-1, 1, 1, 1)) / std.view(-1, 1, 1, 1), rtol=1e-5, atol=1e-5
    )
    # The pipeline's own way from its last latents to frames, from the same noise as ours.
    noise = torch.randn(1, *latents.shape)
    size = {"height": 64, "width": 96, "num_frames": 9, "guidance_scale": 1.0}
    theirs = generate(pipeline, packed(noise), output_type="np", **size)[0]
    last = generate(pipeline, packed(noise), **size).transpose(1, 2).view_as(noise)
    assert abs(encoders.decode_video(last[0]) - theirs * 255).max() <= 0.501


@pytest.mark.usefixtures("eager_kernels")
def test_a_whole_pipeline_trains_and_its_pipeline_takes_the_adapter(folder, world, tmp_path):
    from diffusers import LTXPipeline

    run = Road("ltx", folder, world, tmp_path, SIZE).walk()
    assert (run / "report.html").is_file()
    pipeline = LTXPipeline.from_pretrained(folder)
    noise = torch.randn(1, 12, 8)
    size = {"height": 64, "width": 96, "num_frames": 9, "output_type": "np"}
    before = generate(pipeline, noise, **size)
    pipeline.load_lora_weights(run / "export")
    after = generate(pipeline, noise, **size)
    assert before.shape == (1, *SIZE, 3)
    assert abs(before - after).max() > 0


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((13, 64, 96), ["num_frames is 13", "9 or 17"]),
        ((9, 80, 96), ["height is 80", "64 or 96"]),
        ((9, 64, 16), ["width is 16", "multiples of 32: 32"]),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(folder, size, words):
    with pytest.raises(InputError) as refused:
        open_tiny("ltx", folder).check_size(*size)
    assert all(word in str(refused.value) for word in words)


def test_the_shipped_configuration_fits_the_model(folder):
    config = load_config("ltx_video.yaml")
    assert config.model.family == "ltx"
    open_tiny("ltx", folder).check_size(config.data.num_frames, config.data.height, config.data.width)


def test_a_run_with_another_frame_rate_is_another_run(folder, world, tmp_path):
    """A checkpoint, or cached errors, of one frame rate must not be taken for those of another."""
    config = load_config(Road("ltx", folder, world, tmp_path, SIZE).config())
    identities = {base_identity(config, open_tiny("ltx", folder, frame_rate=rate)) for rate in (None, 25, 8)}
    assert len(identities) == 2
