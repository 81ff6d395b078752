"""Wan's own: images to start from, two experts, whole timesteps."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from PIL import Image

from pgdpo.config import AdapterConfig, DiffusionConfig, SampleSettings
from pgdpo.config.read import load_config
from pgdpo.data.preparing.run import prepare_splits
from pgdpo.diffusion.draws import sigmas
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.adapters.adapter import adapter_metadata, adapter_state, add_adapter
from pgdpo.training.opening import open_pairs
from pgdpo.video import read_video
from pgdpo.video.picture import read_image
from pgdpo_kernels import pair_errors
from tests.models.families import KINDS
from tests.models.road import CPU, PROMPT, Road, changed, conditioning_of, generate, open_pipeline
from tests.models.tiny_wan import BOUNDARY
from tests.worlds import run_pgdpo

IMAGE = KINDS["wan 2.1 i2v"]
EXPERT = KINDS["wan 2.2 t2v a14b high"]
BOTH = KINDS["wan 2.2 i2v a14b high flf2v"]  # pictures


def test_each_expert_has_its_share_of_the_timesteps(saved):
    ids = torch.arange(500)
    for expert, folder in (("high_noise", "transformer"), ("low_noise", "transformer_2")):
        family = EXPERT.open(saved(EXPERT.save), expert=expert)
        draws = sigmas(DiffusionConfig(shift=5.0), seed=0, pair_ids=ids, draws=ids, within=family.sigma_range)
        assert family.transformer_folder == folder
        assert ((draws * 1000 >= BOUNDARY * 1000) == (expert == "high_noise")).all()


def test_a_given_first_frame_is_no_prediction(saved):
    """Errors do not see the frame that the model was given, gradients neither."""
    kind = KINDS["wan 2.2 ti2v 5b t2v"]
    family = kind.open(saved(kind.save), task="image_to_video")
    target = torch.randn(4, 4, 3, 2, 4)
    prediction = torch.randn_like(target).requires_grad_()
    mask = family.loss_mask(target, {})
    errors = pair_errors(prediction, target, mask=mask)
    expected = (prediction - target)[:2, :, 1:].square().mean((1, 2, 3, 4))
    torch.testing.assert_close(errors.policy_chosen[:, 0], expected)
    errors.policy_chosen.sum().backward()
    assert not prediction.grad[:, :, 0].any() and prediction.grad[:2, :, 1:].all()
    assert kind.open(saved(kind.save)).loss_mask(target, {}) is None


@pytest.mark.parametrize("shift", [3.0, 5.0, 8.0, 12.0])
def test_whole_timesteps_are_those_of_every_schedule(shift, saved):
    kind = KINDS["wan 2.1 t2v"]
    family = kind.open(saved(kind.save))
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    for steps in (1, 2, 3, 7, 20, 30, 40, 50, 100):
        scheduler.set_timesteps(steps)
        assert torch.equal(family.timestep(scheduler.sigmas[:steps]), scheduler.timesteps)


def test_the_other_expert_samples_with_its_adapter(saved, tmp_path):
    """As the pipeline does that has it; without one, as it was."""
    folder = saved(EXPERT.save)
    low = EXPERT.open(folder, expert="low_noise")
    transformer = low.load_transformer(dtype=torch.float32)
    add_adapter(transformer, AdapterConfig(rank=2, target_modules=["to_q", "to_v"]), seed=0)
    state = {name: torch.randn_like(tensor) for name, tensor in adapter_state(transformer).items()}
    low.save_adapter(tmp_path, state, adapter_metadata(transformer))
    pipeline = open_pipeline(EXPERT, folder)
    pipeline.load_lora_weights(tmp_path, load_into_transformer_2=True)
    noise = torch.randn(1, *low.latent_shape(*EXPERT.size))
    theirs = generate(EXPERT, pipeline, noise)
    prompt = conditioning_of(low, [PROMPT])
    for adapter, same in ((str(tmp_path), True), (None, False)):
        family = EXPERT.open(folder, other_adapter=adapter)
        ours = family.sample(pipeline.transformer, noise, prompt, prompt, SampleSettings(2, 1.0))
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6) == same


def test_latents_of_two_pictures_are_others_than_those_of_one(saved):
    """One folder, two tasks: what was prepared for the one is not taken for the other."""
    kind = KINDS["wan 2.2 i2v a14b high"]
    one, two = (
        kind.open(saved(kind.save), task=task).load_encoders(CPU) for task in (None, BOTH.keys["task"])
    )
    assert one.fingerprint != two.fingerprint and one.parts["clips"] != two.parts["clips"]
    found = [each.encode_images(BOTH.pictures, 5, "")["image_latents"] for each in (one, two)]
    assert not torch.equal(*found)


def test_an_adapter_for_the_other_expert_must_be_there(tmp_path, saved):
    with pytest.raises(
        InputError, match=r"other_adapter is .*nowhere.*no pytorch_lora_weights.safetensors in it"
    ):
        EXPERT.open(saved(EXPERT.save), other_adapter=tmp_path / "nowhere")


@pytest.fixture(scope="module")
def image_to_video(saved):
    return saved(IMAGE.save)


@pytest.fixture
def with_pictures(image_to_video, world, tmp_path):
    """A configuration whose manifest has two rows: one with a picture of another size, one without."""
    toy = world / "out" / "toy"
    rows = [json.loads(line) for line in (toy / "train.jsonl").read_text().splitlines()[:2]]
    for row in rows:
        for side in ("chosen", "rejected"):
            row[side] = shutil.copy(toy / row[side], tmp_path / f"{row['id']}-{side}.mp4").name
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "first.png")
    rows[0]["image"] = "first.png"
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Road(IMAGE, image_to_video, world, tmp_path).config()
    return load_config(
        config, [f"data.train={tmp_path / 'train.jsonl'}", "data.held_out=null", "data.fps=own"]
    )


def test_the_image_is_the_rows_picture_or_the_chosen_clips_first_frame(with_pictures, tmp_path):
    prepare_splits(with_pictures)
    data = open_pairs(with_pictures, "train")
    encoders = open_family(with_pictures.model).load_encoders(CPU)
    frames, height, width = IMAGE.size
    clip = tmp_path / f"{data.rows[1]['id']}-chosen.mp4"
    pictures = [
        read_image(tmp_path / "first.png", (height, width)),
        read_video(clip, num_frames=1, size=(height, width))[0],
    ]
    for index, image in enumerate(pictures):
        assert image.shape == (height, width, 3)
        found = data[index, 0]["conditioning"]
        for name, tensor in encoders.encode_images({0: image}, frames, "").items():
            # A GPU's convolutions of fp32 are in TF32, as torch has it.
            exact = {"atol": 1e-3, "rtol": 1e-3} if torch.cuda.is_available() else {}
            torch.testing.assert_close(found[name], tensor, **exact)
    assert not torch.equal(found["image_embeds"], data[0, 0]["conditioning"]["image_embeds"])
    Image.fromarray(255 - pictures[0]).save(tmp_path / "first.png")
    with pytest.raises(InputError, match=r"train.jsonl:1: pair `\S+`: `image`, 'first.png', has other bytes"):
        open_pairs(with_pictures, "train")
    prepare_splits(with_pictures)
    other = open_pairs(with_pictures, "train")
    assert other.rows[1]["sha256"] == data.rows[1]["sha256"]
    assert other.rows[0]["sha256"] != data.rows[0]["sha256"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "first.png").unlink(), ["`image` of pair", "first.png", "no file at"]),
        (
            lambda folder: (folder / "first.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing"),
            ["pair", "first.png: cannot be read as a picture", "leave `image` out"],
        ),
    ],
    ids=["missing", "damaged"],
)
def test_a_bad_picture_is_named(with_pictures, tmp_path, spoil, words):
    spoil(tmp_path)
    with pytest.raises(InputError) as refused:
        prepare_splits(with_pictures)
    assert all(word in str(refused.value) for word in words), refused.value
    assert not (tmp_path / "out/prepared/train/index.json").exists()


def test_pairs_prepared_without_the_image_are_refused(world, image_to_video, tmp_path):
    """Prepared by other encoders, asked for by an image-to-video model."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/prepared").symlink_to(world / "out/prepared")
    config = Road(replace(IMAGE, size=(4, 16, 16)), image_to_video, world, tmp_path).config()
    with pytest.raises(
        InputError, match=r"other encoders than those that prepared: .*vae \(None, .*image \(None, "
    ):
        run_pgdpo("train", config)


REFUSED = {
    "another pipeline": (
        "model_index",
        {"_class_name": "WanVACEPipeline"},
        {},
        ["it is Wan VACE (WanVACEPipeline)", "(WanPipeline, WanImageToVideoPipeline)"],
    ),
    "no expert chosen": ("model_index", {"boundary_ratio": 0.9}, {}, ["two experts", "0.9", "set model.expert"]),
    "no second expert": (
        "model_index",
        {"boundary_ratio": 0.9},
        {"expert": "low_noise"},
        ["asks for two experts and transformer_2/ is missing"],
    ),
    "expert of one": ("vae", {}, {"expert": "low_noise"}, ["model.expert is 'low_noise'", "one transformer", "leave"]),
    "task": ("vae", {}, {"task": "text_to_video"}, ["model.task is 'text_to_video'", "is for image_to_video"]),
    "control channels": ("transformer", {"in_channels": 16}, {}, ["takes 16 channels", "from a first frame"]),
    "last frame": ("vae", {}, {"task": "first_last_frame_to_video"}, ["this model is for image_to_video: leave"]),
    "first frame alone": (
        "transformer", {"pos_embed_seq_len": 10}, {"task": "image_to_video"}, ["is for first_last_frame_to_video"],
    ),
    "toy encoders": ("vae", {}, {"encoders": "toy"}, ["starts from an image", "set model.encoders to `pipeline`"]),
}  # fmt: skip


@pytest.mark.parametrize(("part", "values", "keys", "words"), REFUSED.values(), ids=REFUSED)
def test_another_model_is_refused_before_any_weight_is_loaded(
    image_to_video, tmp_path, part, values, keys, words
):
    with pytest.raises(InputError) as refused:
        IMAGE.open(changed(image_to_video, tmp_path, part, **values), **keys)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("part", ["image_encoder", "image_processor"])
def test_a_missing_part_of_the_image_is_named(image_to_video, tmp_path, part):
    copy = shutil.copytree(image_to_video, tmp_path / "partial")
    shutil.rmtree(copy / part)
    with pytest.raises(InputError, match=rf"{part}/"):
        IMAGE.open(copy)


def test_an_image_is_no_clip(image_to_video):
    with pytest.raises(InputError, match="num_frames is 1: an image-to-video"):
        IMAGE.open(image_to_video).check_size(1, 32, 48)
