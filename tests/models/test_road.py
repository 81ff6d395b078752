"""What holds for every kind of pipeline: what training sees is what its own pipeline sees, and what a run exports is
what its pipeline takes. `models/door.py` has the transformer's calls."""

import json
import re
import shutil
from unittest import mock

import numpy as np
import pytest
import torch

from pgdpo.config import ModelConfig, SampleSettings, families
from pgdpo.config.read import load_config
from pgdpo.diffusion.streams import each as of_each
from pgdpo.diffusion.streams import video_of
from pgdpo.messages.errors import InputError
from pgdpo_kernels import noise_pair, pair_noise
from tests.models.families import FAMILIES, KINDS, PIPELINES
from tests.models.road import CPU, PROMPT, Road, changed, conditioning_of, generate, open_pipeline

RECIPES = {recipe: name for name, kind in KINDS.items() for recipe in kind.recipes}


@pytest.fixture(scope="module", params=KINDS)
def each(request, saved):
    """(a kind, its folder, the opened family)."""
    return opened(saved, request.param)


@pytest.fixture(scope="module", params=PIPELINES)
def plain(request, saved):
    """As `each`, of every pipeline once."""
    return opened(saved, request.param)


def opened(saved, name):
    kind = KINDS[name]
    folder = saved(kind.save)
    return kind, folder, kind.open(folder)


def test_every_family_and_every_recipe_walks_this_road():
    assert set(FAMILIES) == set(families())
    for recipe, name in RECIPES.items():
        assert load_config(f"{recipe}.yaml").model.family == KINDS[name].family


def test_noisy_latents_and_target_are_the_schedulers(plain):
    kind, _, family = plain
    scheduler = family.load_scheduler()
    if family.prediction == "flow":
        moving = {"mu": 1.2} if scheduler.config.use_dynamic_shifting else {}
        scheduler.set_timesteps(10, **moving)
        chosen = torch.tensor([0, 2, 7, 9])
        sigma, timestep = scheduler.sigmas[chosen].float(), scheduler.timesteps[chosen]
    else:  # 999: zero terminal SNR
        timestep = torch.tensor([0, 400, 998, 999])
        sigma = (timestep + 0.5) / 1000
        assert torch.equal(family.timestep(sigma), timestep)
    latents = torch.randn(8, *family.latent_shape(*kind.size))
    keys = {"seed": 3, "pair_ids": torch.arange(4), "draw": 0}
    noise = pair_noise((4, *latents.shape[1:]), **keys).repeat(2, 1, 1, 1, 1)
    noisy, target = noise_pair(latents, family.level(sigma), prediction=family.prediction, **keys)
    told = timestep.repeat(2)
    theirs = (
        scheduler.scale_noise(latents, told, noise)
        if hasattr(scheduler, "scale_noise")
        else scheduler.add_noise(latents, noise, told)
    )
    torch.testing.assert_close(noisy, theirs, rtol=1e-6, atol=1e-6)
    if family.prediction == "flow":
        # One Euler step of the scheduler from sigma to 0 along the target gives the clean latents back.
        found = noisy - sigma.repeat(2).view(-1, 1, 1, 1, 1) * target
        torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)
    else:
        velocity = scheduler.get_velocity(latents, noise, told)
        torch.testing.assert_close(target, velocity, rtol=1e-5, atol=1e-6)
        assert torch.equal(noisy[3], noise[3])  # at zero SNR nothing of the clip is left


def test_sampling_is_the_pipelines(each):
    """With guidance by an empty prompt and without; and a sample doesn't depend on its neighbours in the batch."""
    kind, folder, family = each
    pipeline = open_pipeline(kind, folder)
    noise = kind.noise(family)
    if kind.image:
        image = family.load_encoders(CPU).encode_images(kind.pictures, kind.size[0], "")
        assert set(image) == set(family.image_names)
    prompt = conditioning_of(family, [PROMPT], kind)
    empty = prompt | conditioning_of(family, [""])
    transformer = getattr(pipeline, family.transformer_folder)

    def ours(noise, scale):
        count = len(video_of(noise))
        both = (
            {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in told.items()}
            for told in (prompt, empty)
        )
        found = family.sample(transformer, noise, *both, SampleSettings(2, scale))
        return found[:, :, kind.cut :] if kind.cut else found

    for scale, atol in ((1.0, 1e-6), (3.0, 1e-5)):
        theirs = generate(kind, pipeline, noise, negative_prompt="", **kind.guided(scale))
        torch.testing.assert_close(ours(noise, scale), theirs, rtol=1e-5, atol=atol)
    batch = ours(of_each(lambda one: torch.cat([torch.randn_like(one), one]), noise), 3.0)
    torch.testing.assert_close(of_each(lambda two: two[1:], batch), theirs, rtol=1e-4, atol=1e-5)


def test_latents_are_what_the_pipeline_decodes(plain):
    """Put in the place of the pipeline's last ones, they come to its VAE as it encoded them, and to its frames."""
    kind, folder, family = plain
    pipeline = open_pipeline(kind, folder)
    encoders = family.load_encoders(CPU)
    frames = np.random.default_rng(0).integers(0, 256, (*kind.size, 3), dtype=np.uint8)
    latents = encoders.encode_video(frames)
    assert latents.shape == family.latent_shape(*kind.size)

    def ours(pipeline, step, timestep, values):
        return {"latents": kind.lay_out(latents[None])}

    with mock.patch.object(pipeline.vae, "decode", wraps=pipeline.vae.decode) as decode:
        noise = kind.noise(family)
        theirs = generate(kind, pipeline, noise, output_type="np", callback_on_step_end=ours)[0]
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        raw = pipeline.vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(decode.call_args.args[0], raw, rtol=1e-5, atol=1e-5)
    decoded = encoders.decode_video(latents)
    assert decoded.shape == frames.shape
    assert abs(decoded - theirs * 255).max() <= 0.501


OVERRIDES = {
    "wan 2.1 i2v": ["model.adapter.target_modules=[to_q, to_v, add_k_proj, add_v_proj]"],
    "wan 2.1 flf2v": ["model.adapter.target_modules=[to_q, to_v, add_k_proj, add_v_proj]"],
    "hunyuan_video": ["evaluate.guidance_scale=1.5"],
    "hunyuan_video i2v": ["evaluate.guidance_scale=1.5", "data.caption_dropout=0.5"],
}
# What is their own is tested beside; the kinds that are left have the same parts, and go all the way.
SLOW = (
    "wan 2.1 t2v",
    "wan 2.2 t2v a14b high",
    "wan 2.2 i2v a14b high",
    "wan 2.2 i2v a14b low",
    "cogvideox 2b",
    "cogvideox 5b i2v",
    "cogvideox 1.5",
)
SLOW += ("wan 2.2 ti2v 5b t2v", "wan 2.2 ti2v 5b i2v", "wan 2.2 i2v a14b high flf2v")
SLOW += ("hunyuan_video i2v 33ch", "hunyuan_video guidance 3.3", "ltx 8 fps", "ltx 0.9.1")
SLOW += ("ltx i2v", "ltx 0.9.5", "ltx2 alone", "ltx2 i2v", "ltx2 2.3", "ltx2 2.5")


@pytest.mark.usefixtures("eager_kernels", "undrawn")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in KINDS]
)
def test_a_whole_pipeline_trains_and_its_pipeline_takes_the_adapter(name, saved, world, tmp_path):
    kind, folder, family = opened(saved, name)
    run = Road(kind, folder, world, tmp_path).walk(*OVERRIDES.get(name, ()))
    assert (run / "report.html").is_file()
    index = json.loads((tmp_path / "out/prepared/train/index.json").read_text())
    assert index["text_length"] == family.text_length and index["encoders"].startswith(f"{kind.family}:")
    assert ("image_latents" in index["image"]) == kind.image
    pipeline = open_pipeline(kind, folder)
    noise = kind.noise(family)
    before = generate(kind, pipeline, noise, output_type="np")
    pipeline.load_lora_weights(run / "export", **kind.loads)
    adapted = {part for part in pipeline.components if hasattr(getattr(pipeline, part), "peft_config")}
    assert adapted == {family.transformer_folder}
    after = generate(kind, pipeline, noise, output_type="np")
    frames, *size = kind.size
    assert before.shape == (1, frames - kind.cut * kind.step[0], *size, 3) and np.isfinite(after).all()
    assert abs(before - after).max() > 0
    # diffusers' reader of ComfyUI's names takes HunyuanVideo's width for that of the published one.
    if kind.original and "linear1" not in kind.original:
        pipeline.unload_lora_weights()
        pipeline.load_lora_weights(run / "export", weight_name="dpo-comfyui.safetensors", **kind.loads)
        assert abs(generate(kind, pipeline, noise, output_type="np") - after).max() < 1e-5
    said = (run / "export" / "README.md").read_text()
    assert all(f"{option}={value}" in said for option, value in kind.loads.items())


def test_sizes_that_do_not_fit_name_the_nearest(plain):
    kind, _, family = plain
    frames, height, width = kind.size
    more, side = kind.step
    family.check_size(*kind.size)
    for off in range(1, more):
        refused(
            family,
            (frames + off, height, width),
            f"num_frames is {frames + off};.* {frames} or {frames + more}$",
        )
    for off in (1, side // 2, side - 1):
        refused(
            family, (frames, height + off, width), f"height is {height + off};.* {height} or {height + side}$"
        )
        refused(
            family, (frames, height, width - off), f"width is {width - off};.* {width - side} or {width}$"
        )
    refused(family, (frames, height, side // 2), f"width is {side // 2};.* multiples of {side}: {side}$")


def refused(family, size, words):
    with pytest.raises(InputError, match=words):
        family.check_size(*size)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_shipped_configurations_fit_the_model(recipe, saved):
    kind = KINDS[RECIPES[recipe]]
    config = load_config(f"{recipe}.yaml")
    own = config.model.model_fields_set - ModelConfig.model_fields.keys()
    family = kind.open(saved(kind.save), **{key: getattr(config.model, key) for key in own})
    for name in ("card", "prediction", "masks_text"):
        assert getattr(family, name) == getattr(kind, name), name
    family.check_size(config.data.num_frames, config.data.height, config.data.width)


@pytest.mark.parametrize("part", ["vae", "tokenizer", "text_encoder", "scheduler"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_part_is_named(name, part, saved, tmp_path):
    kind = FAMILIES[name]
    copy = shutil.copytree(saved(kind.save), tmp_path / "partial")
    shutil.rmtree(copy / part)
    words = f"has no {part}/; a diffusers folder of a {kind.open(saved(kind.save)).pipeline_class.__name__}"
    with pytest.raises(InputError, match=re.escape(words)):
        kind.open(copy)


@pytest.mark.parametrize("part", ["transformer", "vae"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_part_of_another_class_is_refused(name, part, saved, tmp_path):
    kind = FAMILIES[name]
    copy = changed(saved(kind.save), tmp_path, part, _class_name="SomethingElse")
    with pytest.raises(InputError, match=f"its {part} is a SomethingElse, .*needs a "):
        kind.open(copy)


def test_missing_weights_are_said(saved, tmp_path):
    kind = FAMILIES["wan"]
    copy = shutil.copytree(saved(kind.save), tmp_path / "partial")
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="the weights in transformer/ do not load"):
        kind.open(copy).load_transformer(dtype=torch.float32)
