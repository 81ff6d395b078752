"""Every kind of Wan pipeline, from clips to an adapter that diffusers' own pipeline takes and generates with."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from tests.models.tiny_pipelines import PROMPT, Road, conditioning_of, generate, open_tiny
from tests.models.tiny_wan import SIZES, picture, save_tiny
from tests.worlds import run_pgdpo

IMAGE_TARGETS = "model.adapter.target_modules=[to_q, to_v, add_k_proj, add_v_proj]"
# kind of pipeline, overrides, whether it starts from an image
ROADS = [
    pytest.param("2.1 i2v", [IMAGE_TARGETS], True, id="2.1 i2v"),
    pytest.param("2.2 t2v a14b", ["model.expert=low_noise"], False, id="2.2 t2v low"),
    pytest.param("2.2 ti2v 5b", ["model.task=image_to_video"], True, id="2.2 5b i2v", marks=pytest.mark.slow),
    pytest.param(
        "2.2 i2v a14b", ["model.expert=high_noise"], True, id="2.2 i2v high", marks=pytest.mark.slow
    ),
    pytest.param("2.2 ti2v 5b", [], False, id="2.2 5b t2v", marks=pytest.mark.slow),
]


def open_pipeline(folder, image: bool):
    from diffusers import WanImageToVideoPipeline, WanPipeline

    return (WanImageToVideoPipeline if image else WanPipeline).from_pretrained(folder)


def call_options(kind: str, image: bool) -> dict:
    frames, height, width = SIZES[kind]
    given = {"image": Image.fromarray(picture(kind))} if image else {}
    return {"num_frames": frames, "height": height, "width": width, **given}


@pytest.mark.usefixtures("eager_kernels")
@pytest.mark.parametrize(("kind", "overrides", "image"), ROADS)
def test_a_whole_pipeline_trains_and_its_pipeline_takes_the_adapter(
    kind, overrides, image, world, tmp_path, saved
):
    folder = saved(save_tiny, kind)
    run = Road("wan", folder, world, tmp_path, SIZES[kind]).walk(*overrides)
    index = json.loads((tmp_path / "out/prepared/train/index.json").read_text())
    assert ("image_latents" in index["image"]) == image
    low = "model.expert=low_noise" in overrides
    pipeline = open_pipeline(folder, image)
    keys = dict(
        override.removeprefix("model.").split("=")
        for override in overrides
        if override.startswith(("model.task", "model.expert"))
    )
    latents = torch.randn(1, *open_tiny("wan", folder, **keys).latent_shape(*SIZES[kind]))
    options = {**call_options(kind, image), "output_type": "np", "guidance_scale": 1.0}
    before = generate(pipeline, latents, **options)
    pipeline.load_lora_weights(run / "export", **({"load_into_transformer_2": True} if low else {}))
    assert hasattr(pipeline.transformer, "peft_config") != low
    after = generate(pipeline, latents, **options)
    assert before.shape == (1, *SIZES[kind], 3) and np.isfinite(after).all()
    assert abs(before - after).max() > 0
    if low:
        assert "load_into_transformer_2=True" in (run / "export" / "README.md").read_text()
        check_other_adapter(folder, run / "export", pipeline, latents, kind)


def check_other_adapter(folder, export, pipeline, latents, kind):
    """The other expert's run samples with this one's adapter, as the pipeline that has it does."""
    theirs = generate(pipeline, latents, guidance_scale=1.0, **call_options(kind, False))
    for adapter, same in ((str(export), True), (None, False)):
        family = open_tiny("wan", folder, expert="high_noise", other_adapter=adapter)
        ours = family.sample(
            pipeline.transformer,
            latents,
            conditioning_of(family, [PROMPT]),
            conditioning_of(family, [""]),
            steps=2,
            guidance_scale=1.0,
        )
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6) == same


@pytest.fixture(scope="module")
def image_to_video(saved):
    return saved(save_tiny, "2.1 i2v")


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
    config = Road("wan", image_to_video, world, tmp_path, SIZES["2.1 i2v"]).config()
    return load_config(
        config, [f"data.train={tmp_path / 'train.jsonl'}", "data.held_out=null", "data.fps=own"]
    )


def test_the_image_is_the_rows_picture_or_the_chosen_clips_first_frame(with_pictures, tmp_path):
    from pgdpo.data.preparing.run import prepare_splits
    from pgdpo.models import open_family
    from pgdpo.training.opening import open_pairs
    from pgdpo.video import read_video
    from pgdpo.video.picture import read_image

    prepare_splits(with_pictures)
    data = open_pairs(with_pictures, "train")
    encoders = open_family(with_pictures.model).load_encoders(torch.device("cpu"))
    frames, height, width = SIZES["2.1 i2v"]
    clip = tmp_path / f"{data.rows[1]['id']}-chosen.mp4"
    pictures = [
        read_image(tmp_path / "first.png", (height, width)),
        read_video(clip, num_frames=1, size=(height, width))[0],
    ]
    for index, image in enumerate(pictures):
        assert image.shape == (height, width, 3)
        found = data[index, 0]["conditioning"]
        for name, tensor in encoders.encode_image(image, frames).items():
            torch.testing.assert_close(found[name], tensor)
    assert not torch.equal(found["image_embeds"], data[0, 0]["conditioning"]["image_embeds"])
    Image.fromarray(255 - pictures[0]).save(tmp_path / "first.png")
    with pytest.raises(InputError, match=r"train.jsonl:1: pair `\S+`: `image`, 'first.png', has other bytes"):
        open_pairs(with_pictures, "train")
    prepare_splits(with_pictures)
    changed = open_pairs(with_pictures, "train")
    assert changed.rows[1]["sha256"] == data.rows[1]["sha256"]
    assert changed.rows[0]["sha256"] != data.rows[0]["sha256"]


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
    from pgdpo.data.preparing.run import prepare_splits

    spoil(tmp_path)
    with pytest.raises(InputError) as refused:
        prepare_splits(with_pictures)
    assert all(word in str(refused.value) for word in words), refused.value
    assert not (tmp_path / "out/prepared/train/index.json").exists()


def test_pairs_prepared_without_the_image_are_refused(world, image_to_video, tmp_path):
    """Prepared by other encoders, asked for by an image-to-video model."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/prepared").symlink_to(world / "out/prepared")
    config = Road("wan", image_to_video, world, tmp_path, (4, 16, 16)).config()
    with pytest.raises(
        InputError, match=r"other encoders than those that prepared: .*vae \(None, .*image \(None, "
    ):
        run_pgdpo("train", config)


def changed(folder, tmp_path, part: str, **values):
    """A copy of a pipeline with other entries in one part's configuration."""
    copy = shutil.copytree(folder, tmp_path / "changed")
    path = copy / "model_index.json" if part == "model_index" else next((copy / part).glob("*config.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return copy


REFUSED = {
    "another pipeline": (
        "model_index",
        {"_class_name": "WanVACEPipeline"},
        {},
        ["it is a WanVACEPipeline", "a WanPipeline or a WanImageToVideoPipeline"],
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
    "last frame": ("transformer", {"pos_embed_seq_len": 10}, {}, ["a last frame"]),
    "toy encoders": ("vae", {}, {"encoders": "toy"}, ["starts from an image", "set model.encoders to `pipeline`"]),
    "vae": ("vae", {"_class_name": "AutoencoderKLLTXVideo"}, {}, ["its vae is a AutoencoderKLLTXVideo"]),
}  # fmt: skip


@pytest.mark.parametrize(("part", "values", "keys", "words"), REFUSED.values(), ids=REFUSED)
def test_another_model_is_refused_before_any_weight_is_loaded(
    image_to_video, tmp_path, part, values, keys, words
):
    with pytest.raises(InputError) as refused:
        open_tiny("wan", changed(image_to_video, tmp_path, part, **values), **keys)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    "part", ["vae", "tokenizer", "text_encoder", "scheduler", "image_encoder", "image_processor"]
)
def test_a_missing_part_is_named(image_to_video, tmp_path, part):
    copy = shutil.copytree(image_to_video, tmp_path / "partial")
    shutil.rmtree(copy / part)
    with pytest.raises(InputError, match=rf"{part}/"):
        open_tiny("wan", copy)


def test_missing_weights_are_said(image_to_video, tmp_path):
    copy = shutil.copytree(image_to_video, tmp_path / "partial")
    (copy / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="the weights in transformer/ do not load"):
        open_tiny("wan", copy).load_transformer(dtype=torch.float32)


def test_an_adapter_for_the_other_expert_must_be_there(tmp_path, saved):
    folder = saved(save_tiny, "2.2 t2v a14b")
    with pytest.raises(
        InputError, match=r"other_adapter is .*nowhere.*no pytorch_lora_weights.safetensors in it"
    ):
        open_tiny("wan", folder, expert="high_noise", other_adapter=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("kind", "size", "words"),
    [
        ("2.1 i2v", (6, 32, 48), ["num_frames is 6", "5 or 9"]),
        ("2.1 i2v", (5, 24, 48), ["height is 24", "16 or 32"]),
        ("2.1 i2v", (1, 32, 48), ["num_frames is 1", "image-to-video"]),
        ("2.2 ti2v 5b", (5, 32, 48), ["width is 48", "multiples of 32", "32 or 64"]),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(kind, size, words, saved):
    with pytest.raises(InputError) as refused:
        open_tiny("wan", saved(save_tiny, kind)).check_size(*size)
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("wan21_1.3b", "2.1 t2v"),
        ("wan21_14b", "2.1 t2v"),
        ("wan21_i2v_14b", "2.1 i2v"),
        ("wan22_a14b", "2.2 t2v a14b"),
        ("wan22_i2v_a14b", "2.2 i2v a14b"),
        ("wan22_ti2v_5b", "2.2 ti2v 5b"),
    ],
)
def test_the_shipped_configurations_fit_the_model(name, kind, saved):
    config = load_config(f"{name}.yaml")
    keys = {"task": config.model.task, "expert": config.model.expert}
    family = open_tiny("wan", saved(save_tiny, kind), **keys)
    family.check_size(config.data.num_frames, config.data.height, config.data.width)
