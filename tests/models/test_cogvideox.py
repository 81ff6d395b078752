"""CogVideoX 2b and 5b on tiny pipelines of their own classes: what training sees is what the pipeline sees."""

import json
import shutil

import numpy as np
import pytest
import torch

from pgdpo.config.read import load_config
from pgdpo.engine.policy import build_policy
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
    save_tiny_cogvideox,
)
from tests.worlds import losses, run_pgdpo

SIZE = (9, 32, 48)  # frames, height, width
IDS = torch.tensor([11, 12])


@pytest.fixture(scope="module", params=["2b", "5b"])
def folder(request, saved):
    return saved(save_tiny_cogvideox, rotary=request.param == "5b")


@pytest.fixture(scope="module")
def tiny_2b(saved):
    return saved(save_tiny_cogvideox, rotary=False)


@pytest.fixture(scope="module")
def pipeline(folder):
    from diffusers import CogVideoXPipeline

    return CogVideoXPipeline.from_pretrained(folder)


def test_noisy_latents_and_velocity_are_the_schedulers(folder, pipeline):
    family = open_tiny("cogvideox", folder)
    timesteps = torch.tensor([0, 400, 998, 999])  # 999: zero terminal SNR
    sigma = (timesteps + 0.5) / 1000
    ids = torch.arange(4)
    latents = torch.randn(8, *family.latent_shape(*SIZE))
    noisy, velocity = noise_pair(
        latents, family.level(sigma), seed=3, pair_ids=ids, draw=0, prediction=family.prediction
    )
    noise = pair_noise((4, *latents.shape[1:]), seed=3, pair_ids=ids, draw=0).repeat(2, 1, 1, 1, 1)
    both = timesteps.repeat(2)
    assert torch.equal(family.timestep(sigma), timesteps)
    scheduler = pipeline.scheduler
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, both), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(velocity, scheduler.get_velocity(latents, noise, both), rtol=1e-5, atol=1e-6)
    assert torch.equal(noisy[3], noise[3])  # at zero SNR nothing of the clip is left


def test_every_sigma_stands_for_a_timestep_of_the_schedule(tiny_2b):
    family = open_tiny("cogvideox", tiny_2b)
    sigma = torch.tensor([0.0, 1e-9, 0.5, 1 - 2**-24, 1.0])
    assert family.timestep(sigma).tolist() == [0, 0, 500, 999, 999]


def test_the_transformer_is_called_as_the_pipeline_calls_it(folder, pipeline):
    family = open_tiny("cogvideox", folder)
    noise = torch.randn(1, *family.latent_shape(*SIZE))
    calls = record(pipeline.transformer)
    size = {"height": 32, "width": 48, "num_frames": 9}
    try:
        generate(pipeline, noise.transpose(1, 2), guidance_scale=1.0, **size)
        conditioning = conditioning_of(family, [PROMPT])
        assert conditioning["prompt_mask"].all()  # no token is masked in this model: padding is stored too
        for arguments, prediction in list(calls):
            ours = {}

            def transformer(ours=ours, **keywords):
                ours.update(keywords)
                return pipeline.transformer(**keywords)

            sigma = (arguments["timestep"] + 0.5) / 1000
            with torch.no_grad():
                mine = family.predict(
                    transformer, arguments["hidden_states"].transpose(1, 2), sigma, conditioning
                )
            same_calls(ours, arguments)
            assert torch.equal(mine.transpose(1, 2), prediction)
    finally:
        pipeline.transformer._forward_hooks.clear()


def test_sampling_is_the_pipelines(folder, pipeline):
    family = open_tiny("cogvideox", folder)
    noise = torch.randn(1, *family.latent_shape(*SIZE))
    seed = int(noise.flatten()[0].view(torch.int32))  # of the noise that the 5b's scheduler adds
    theirs = generate(
        pipeline,
        noise.transpose(1, 2),
        height=32,
        width=48,
        num_frames=9,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed),
    ).transpose(1, 2)
    conditioning, empty = conditioning_of(family, [PROMPT]), conditioning_of(family, [""])
    ours = family.sample(pipeline.transformer, noise, conditioning, empty, steps=2, guidance_scale=3.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    # A sample does not depend on its neighbours in the batch.
    other = torch.cat([torch.randn_like(noise), noise])
    double = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in conditioning.items()}
    none = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in empty.items()}
    batch = family.sample(pipeline.transformer, other, double, none, steps=2, guidance_scale=3.0)
    torch.testing.assert_close(batch[1:], ours, rtol=1e-4, atol=1e-5)


def test_latents_are_what_the_pipeline_decodes(folder, pipeline):
    family = open_tiny("cogvideox", folder)
    encoders = family.load_encoders(torch.device("cpu"))
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
    latents = encoders.encode_video(frames)
    assert latents.shape == family.latent_shape(*SIZE)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        raw = pipeline.vae.encode(pixels).latent_dist.mode()[0]
        video = pipeline.decode_latents(latents[None].transpose(1, 2))
    torch.testing.assert_close(latents, raw * pipeline.vae.config.scaling_factor)
    theirs = pipeline.video_processor.postprocess_video(video, output_type="np")[0]
    decoded = encoders.decode_video(latents)
    assert decoded.shape == frames.shape
    assert abs(decoded - theirs * 255).max() <= 0.501


@pytest.mark.usefixtures("eager_kernels")
def test_a_whole_pipeline_trains_and_its_pipeline_takes_the_adapter(folder, world, tmp_path):
    from diffusers import CogVideoXPipeline

    run = Road("cogvideox", folder, world, tmp_path, SIZE).walk()
    assert (run / "report.html").is_file()
    pipeline = CogVideoXPipeline.from_pretrained(folder)
    noise = torch.randn(1, 3, 4, 4, 6)
    size = {"height": 32, "width": 48, "num_frames": 9, "output_type": "np"}
    before = generate(pipeline, noise, generator=torch.Generator().manual_seed(0), **size)
    pipeline.load_lora_weights(run / "export")
    after = generate(pipeline, noise, generator=torch.Generator().manual_seed(0), **size)
    assert before.shape == (1, *SIZE, 3)
    assert abs(before - after).max() > 0


def changed(folder, tmp_path, part: str, **values):
    """A copy of a pipeline with other entries in one part's configuration."""
    copy = shutil.copytree(folder, tmp_path / "changed")
    path = next((copy / part).glob("*config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("transformer", {"in_channels": 8}, ["takes 8 channels", "image-to-video", "CogVideoX-2b and -5b"]),
        ("transformer", {"patch_size_t": 2}, ["joins 2 latent frames", "CogVideoX 1.5"]),
        ("scheduler", {"prediction_type": "epsilon"}, ["prediction_type is 'epsilon'", "'v_prediction'"]),
        (
            "vae",
            {"_class_name": "AutoencoderKLWan"},
            ["its vae is a AutoencoderKLWan", "AutoencoderKLCogVideoX"],
        ),
        ("transformer", {"_class_name": "WanTransformer3DModel"}, ["is a WanTransformer3DModel"]),
    ],
)
def test_another_model_is_refused_before_any_weight_is_loaded(tiny_2b, tmp_path, part, values, words):
    with pytest.raises(InputError) as refused:
        open_tiny("cogvideox", changed(tiny_2b, tmp_path, part, **values))
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("part", ["vae", "tokenizer", "text_encoder", "scheduler"])
def test_a_missing_part_is_named(tiny_2b, tmp_path, part):
    copy = shutil.copytree(tiny_2b, tmp_path / "partial")
    shutil.rmtree(copy / part)
    with pytest.raises(InputError, match=f"has no {part}/; a diffusers folder of a CogVideoXPipeline"):
        open_tiny("cogvideox", copy)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((13, 32, 48), ["num_frames is 13", "9 or 17"]),  # 4 latent frames, decoded to 16
        ((9, 40, 48), ["height is 40", "32 or 48"]),
        ((9, 32, 50), ["width is 50", "48 or 64"]),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(tiny_2b, size, words):
    with pytest.raises(InputError) as refused:
        open_tiny("cogvideox", tiny_2b).check_size(*size)
    assert all(word in str(refused.value) for word in words)


def test_attention_that_takes_no_backend_is_said_before_the_first_step(tiny_2b, world, tmp_path):
    config = load_config(Road("cogvideox", tiny_2b, world, tmp_path, SIZE).config(attention="xformers"))
    with pytest.raises(
        InputError, match="diffusers calls torch's attention in a CogVideoXTransformer3DModel"
    ):
        build_policy(config, torch.device("cpu"))


@pytest.mark.parametrize("name", ["cogvideox_2b", "cogvideox_5b"])
def test_the_shipped_configurations_fit_the_model(tiny_2b, name):
    config = load_config(f"{name}.yaml")
    assert config.model.family == "cogvideox"
    open_tiny("cogvideox", tiny_2b).check_size(config.data.num_frames, config.data.height, config.data.width)


@pytest.mark.slow
def test_compiled_blocks_train_alike(tiny_2b, world, tmp_path):
    """diffusers names no repeated block of this model; the family does."""
    config = Road("cogvideox", tiny_2b, world, tmp_path, SIZE).config()
    run_pgdpo("prepare", config)
    for name, backend in (("eager", "none"), ("compiled", "aot_eager")):
        run_pgdpo("train", config, f"name={name}", f"model.compile={backend}")
    eager, compiled = (losses(tmp_path / "out", name) for name in ("eager", "compiled"))
    assert eager == pytest.approx(compiled, rel=1e-6)
