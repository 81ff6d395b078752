"""HunyuanVideo on a tiny pipeline of its own classes: what training sees is what the pipeline sees."""

import numpy as np
import pytest
import torch

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
    save_tiny_hunyuan_video,
)

SIZE = (9, 32, 48)  # frames, height, width
IDS = torch.tensor([11, 12])


@pytest.fixture(scope="module")
def folder(saved):
    return saved(save_tiny_hunyuan_video)


@pytest.fixture(scope="module")
def pipeline(folder):
    from diffusers import HunyuanVideoPipeline

    return HunyuanVideoPipeline.from_pretrained(folder)


def test_noisy_latents_and_target_are_the_schedulers(folder, pipeline):
    family = open_tiny("hunyuan_video", folder)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(10)
    sigma = scheduler.sigmas[[2, 7]]
    latents = torch.randn(4, *family.latent_shape(*SIZE))
    noisy, target = noise_pair(
        latents, family.level(sigma), seed=3, pair_ids=IDS, draw=0, prediction=family.prediction
    )
    noise = pair_noise((2, *latents.shape[1:]), seed=3, pair_ids=IDS, draw=0).repeat(2, 1, 1, 1, 1)
    theirs = scheduler.scale_noise(latents, scheduler.timesteps[[2, 7, 2, 7]], noise)
    torch.testing.assert_close(noisy, theirs, rtol=1e-6, atol=1e-6)
    # One Euler step of the scheduler from sigma to 0 along the target must give the clean latents back.
    torch.testing.assert_close(noisy - sigma.repeat(2).view(-1, 1, 1, 1, 1) * target, latents)


@pytest.mark.parametrize("guidance", [None, 3.5])
def test_the_transformer_is_called_as_the_pipeline_calls_it(folder, pipeline, guidance):
    family = open_tiny("hunyuan_video", folder, guidance=guidance)
    noise = torch.randn(1, *family.latent_shape(*SIZE))
    calls = record(pipeline.transformer)
    try:
        told = {} if guidance is None else {"guidance_scale": guidance}  # else the pipeline's default
        theirs = generate(pipeline, noise, height=32, width=48, num_frames=9, **told)
        conditioning = conditioning_of(family, [PROMPT])
        for arguments, prediction in list(calls):
            ours = {}

            def transformer(ours=ours, **keywords):
                ours.update(keywords)
                return pipeline.transformer(**keywords)

            with torch.no_grad():
                mine = family.predict(
                    transformer, arguments["hidden_states"], arguments["timestep"] / 1000, conditioning
                )
            same_calls(ours, arguments, text_mask=conditioning["prompt_mask"])
            torch.testing.assert_close(mine, prediction, rtol=1e-5, atol=1e-6)
    finally:
        pipeline.transformer._forward_hooks.clear()
    sampled = family.sample(
        pipeline.transformer, noise, conditioning, conditioning, steps=2, guidance_scale=1.0
    )
    torch.testing.assert_close(sampled, theirs, rtol=1e-5, atol=1e-6)


def test_latents_are_what_the_pipeline_decodes(folder, pipeline):
    family = open_tiny("hunyuan_video", folder)
    encoders = family.load_encoders(torch.device("cpu"))
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
    latents = encoders.encode_video(frames)
    assert latents.shape == family.latent_shape(*SIZE)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        raw = pipeline.vae.encode(pixels).latent_dist.mode()[0]
        video = pipeline.vae.decode(latents[None] / pipeline.vae.config.scaling_factor).sample
    torch.testing.assert_close(latents, raw * pipeline.vae.config.scaling_factor)
    theirs = pipeline.video_processor.postprocess_video(video, output_type="np")[0]
    assert abs(encoders.decode_video(latents) - theirs * 255).max() <= 0.501


@pytest.mark.usefixtures("eager_kernels")
def test_a_whole_pipeline_trains_and_its_pipeline_takes_the_adapter(folder, world, tmp_path):
    from diffusers import HunyuanVideoPipeline

    run = Road("hunyuan_video", folder, world, tmp_path, SIZE).walk("evaluate.guidance_scale=1.5")
    assert (run / "report.html").is_file()
    pipeline = HunyuanVideoPipeline.from_pretrained(folder)
    noise = torch.randn(1, 4, 3, 4, 6)
    size = {"height": 32, "width": 48, "num_frames": 9, "output_type": "np"}
    before = generate(pipeline, noise, **size)
    pipeline.load_lora_weights(run / "export")
    after = generate(pipeline, noise, **size)
    assert before.shape == (1, *SIZE, 3)
    assert abs(before - after).max() > 0


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((10, 32, 48), ["num_frames is 10", "9 or 13"]),
        ((9, 40, 48), ["height is 40", "32 or 48"]),
        ((9, 32, 8), ["width is 8", "multiples of 16: 16"]),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(folder, size, words):
    with pytest.raises(InputError) as refused:
        open_tiny("hunyuan_video", folder).check_size(*size)
    assert all(word in str(refused.value) for word in words)


def test_the_shipped_configuration_fits_the_model(folder):
    config = load_config("hunyuan_video.yaml")
    assert config.model.family == "hunyuan_video"
    open_tiny("hunyuan_video", folder).check_size(
        config.data.num_frames, config.data.height, config.data.width
    )
