"""Wan 2.1 and 2.2 on tiny pipelines of their own classes: what training sees is what the pipelines see."""

import functools

import pytest
import torch
from PIL import Image

from pgdpo_kernels import noise_pair, pair_noise
from tests.models.tiny_pipelines import PROMPT, conditioning_of, generate, open_tiny, record, same_calls
from tests.models.tiny_wan import BOUNDARY, SIZES, picture, save_tiny

# (kind of pipeline, model keys, whether it starts from an image)
CASES = {
    "2.1 t2v": ("2.1 t2v", {}, False),
    "2.1 i2v": ("2.1 i2v", {}, True),
    "2.2 t2v high": ("2.2 t2v a14b", {"expert": "high_noise"}, False),
    "2.2 i2v low": ("2.2 i2v a14b", {"expert": "low_noise"}, True),
    "2.2 5b t2v": ("2.2 ti2v 5b", {}, False),
    "2.2 5b i2v": ("2.2 ti2v 5b", {"task": "image_to_video"}, True),
}


@pytest.fixture(scope="module")
def tiny(saved):
    """kind -> folder."""
    return functools.partial(saved, save_tiny)


@pytest.fixture(scope="module", params=CASES)
def case(request, tiny):
    """(family, the real pipeline, size and image to call it with, our conditioning and the empty prompt's)."""
    from diffusers import WanImageToVideoPipeline, WanPipeline

    kind, keys, image = CASES[request.param]
    family = open_tiny("wan", tiny(kind), **keys)
    pipeline = (WanImageToVideoPipeline if image else WanPipeline).from_pretrained(tiny(kind))
    frames, height, width = SIZES[kind]
    options = {"num_frames": frames, "height": height, "width": width}
    given = {}
    if image:
        options["image"] = Image.fromarray(picture(kind))
        encoded = family.load_encoders(torch.device("cpu")).encode_image(picture(kind), frames)
        given = {name: tensor[None] for name, tensor in encoded.items()}
    assert set(given) == set(family.image_names)
    conditioning, empty = ({**conditioning_of(family, [text]), **given} for text in (PROMPT, ""))
    return family, pipeline, options, conditioning, empty


def noise_for(family, options):
    return torch.randn(1, *family.latent_shape(options["num_frames"], options["height"], options["width"]))


def test_noisy_latents_and_target_are_the_schedulers(tiny):
    from diffusers import FlowMatchEulerDiscreteScheduler

    family = open_tiny("wan", tiny("2.1 t2v"))
    latents = torch.randn(8, *family.latent_shape(*SIZES["2.1 t2v"]))
    keys = {"seed": 3, "pair_ids": torch.arange(4), "draw": 0}
    noise = pair_noise((4, *latents.shape[1:]), **keys).repeat(2, 1, 1, 1, 1)
    for scheduler in (family.load_scheduler(), FlowMatchEulerDiscreteScheduler(shift=5.0)):
        scheduler.set_timesteps(8)
        chosen = torch.tensor([0, 2, 5, 7])
        sigma, timestep = scheduler.sigmas[chosen].float(), scheduler.timesteps[chosen].repeat(2)
        noisy, target = noise_pair(latents, family.level(sigma), prediction=family.prediction, **keys)
        if hasattr(scheduler, "add_noise"):
            theirs = scheduler.add_noise(latents, noise, timestep)
        else:
            theirs = scheduler.scale_noise(latents, timestep, noise)
        torch.testing.assert_close(noisy, theirs, rtol=1e-5, atol=1e-6)
        # Both schedulers find the clip as noisy - sigma * prediction.
        found = noisy - sigma.repeat(2).view(-1, 1, 1, 1, 1) * target
        torch.testing.assert_close(found, latents, rtol=1e-4, atol=1e-5)


def test_the_transformers_are_called_as_the_pipeline_calls_them(case):
    family, pipeline, options, conditioning, _ = case
    noise = noise_for(family, options)
    trained = getattr(pipeline, family.transformer_folder)
    calls = record(trained)
    generate(pipeline, noise, guidance_scale=1.0, **options)
    assert calls
    for arguments, prediction in list(calls):
        ours = {}

        def transformer(ours=ours, **keywords):
            ours.update(keywords)
            return trained(**keywords)

        sigma = arguments["timestep"].flatten()[-1:] / 1000
        assert family.sigma_range[0] <= sigma <= family.sigma_range[1]
        noisy = arguments["hidden_states"][:, : noise.shape[1]].clone()
        if family.loss_mask(noise, conditioning) is not None:
            noisy[:, :, 0].normal_()  # what noise makes of the given frame is not looked at
        with torch.no_grad():
            mine = family.predict(transformer, noisy, sigma, conditioning)
        same_calls(ours, arguments)
        torch.testing.assert_close(mine, prediction, rtol=1e-5, atol=1e-6)


def test_sampling_is_the_pipelines(case):
    family, pipeline, options, conditioning, empty = case
    noise = noise_for(family, options)
    theirs = generate(pipeline, noise, guidance_scale=3.0, **options)
    trained = getattr(pipeline, family.transformer_folder)
    ours = family.sample(trained, noise, conditioning, empty, steps=2, guidance_scale=3.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_each_expert_has_its_share_of_the_timesteps(tiny):
    from pgdpo.config import DiffusionConfig
    from pgdpo.diffusion.draws import sigmas

    ids = torch.arange(500)
    for expert, folder in (("high_noise", "transformer"), ("low_noise", "transformer_2")):
        family = open_tiny("wan", tiny("2.2 t2v a14b"), expert=expert)
        draws = sigmas(DiffusionConfig(shift=5.0), seed=0, pair_ids=ids, draws=ids, within=family.sigma_range)
        assert family.transformer_folder == folder
        assert ((draws * 1000 >= BOUNDARY * 1000) == (expert == "high_noise")).all()


def test_a_given_first_frame_is_no_prediction(tiny):
    """Errors do not see the frame that the model was given, gradients neither."""
    from pgdpo_kernels import pair_errors

    family = open_tiny("wan", tiny("2.2 ti2v 5b"), task="image_to_video")
    target = torch.randn(4, 4, 3, 2, 4)
    prediction = torch.randn_like(target).requires_grad_()
    mask = family.loss_mask(target, {})
    errors = pair_errors(prediction, target, mask=mask)
    expected = (prediction - target)[:2, :, 1:].square().mean((1, 2, 3, 4))
    torch.testing.assert_close(errors.policy_chosen[:, 0], expected)
    errors.policy_chosen.sum().backward()
    assert not prediction.grad[:, :, 0].any() and prediction.grad[:2, :, 1:].all()
    assert open_tiny("wan", tiny("2.2 ti2v 5b")).loss_mask(target, {}) is None
