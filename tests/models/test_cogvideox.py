"""CogVideoX's own: timesteps of a schedule, models beside it, attention that takes no backend."""

import numpy as np
import pytest
import torch

from pgdpo.config.read import load_config
from pgdpo.engine.policy import build_policy
from pgdpo.messages.errors import InputError
from pgdpo.objectives import Needs
from pgdpo.training.task.checks import divide_frames
from pgdpo_kernels import pair_errors
from tests.models.families import KINDS
from tests.models.road import CPU, PROMPT, Road, changed, conditioning_of
from tests.worlds import losses, run_pgdpo

KIND = KINDS["cogvideox 2b"]
NEWER, IMAGES = KINDS["cogvideox 1.5"], ("cogvideox 5b i2v", "cogvideox 1.5 i2v")


@pytest.fixture(scope="module")
def folder(saved):
    return saved(KIND.save)


def test_every_sigma_stands_for_a_timestep_of_the_schedule(folder):
    sigma = torch.tensor([0.0, 1e-9, 0.5, 1 - 2**-24, 1.0])
    assert KIND.open(folder).timestep(sigma).tolist() == [0, 0, 500, 999, 999]


def test_no_token_of_text_is_masked(folder):
    """Padding is stored too."""
    assert conditioning_of(KIND.open(folder), [PROMPT])["prompt_mask"].all()


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_the_mode_of_what_the_pipeline_draws(name, saved):
    """The pipeline's draws lie around it by the VAE's own deviation; 1.5 scales the other way round."""
    kind = KINDS[name]
    family = kind.open(saved(kind.save))
    ours = family.load_encoders(CPU).encode_images({0: kind.picture}, kind.size[0], "")["image_latents"]
    pipeline = family.pipeline_class.from_pretrained(family.source)
    frames, height, width = kind.size
    pixels = torch.from_numpy(kind.picture).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        given = pipeline.vae.encode(pixels[:, :, None]).latent_dist
        # `__call__` asks for the frames that it fills up too.
        asked = 1, 4, frames + 4 * family.lead, height, width, torch.float32, CPU
        draw = torch.Generator().manual_seed(5)
        _, drawn = pipeline.prepare_latents(pixels, *asked, draw)
    scale = 0.7 if name == "cogvideox 5b i2v" else 1 / 0.7
    torch.testing.assert_close(ours, given.mean[0] * scale)
    noise = torch.randn(given.mean.shape, generator=torch.Generator().manual_seed(5))
    assert float(given.std.min()) > 0.01
    torch.testing.assert_close(
        drawn[0, 0], ours[:, 0] + (given.std * noise)[0, :, 0] * scale, rtol=1e-4, atol=1e-5
    )
    assert drawn.shape[1] == family.latent_shape(*kind.size)[1] and not drawn[:, 1:].any()


def test_the_frame_that_fills_up_a_pair_is_the_first_and_counts_nowhere(saved):
    family = NEWER.open(saved(NEWER.save))
    encoders = family.load_encoders(CPU)
    clip = np.random.default_rng(0).integers(0, 256, (*NEWER.size, 3), dtype=np.uint8)
    latents = encoders.encode_video(clip)
    assert latents.shape[1] == 4 and torch.equal(latents[:, 0], latents[:, 1])
    frames = encoders.decode_video(latents)
    latents[:, 0] = 9
    assert frames.shape == clip.shape and np.array_equal(encoders.decode_video(latents), frames)
    pred, target = torch.randn(2, 2, 4, 4, 4, 6)
    mask = family.loss_mask(target, {})
    errors = pair_errors(pred, target, mask=mask).policy_chosen
    expected = (pred[0, :, 1:].double() - target[0, :, 1:].double()).square().mean()
    assert float(errors) == pytest.approx(float(expected), rel=1e-5)
    older = KIND.open(saved(KIND.save))
    assert older.loss_mask(target, {}) is None and older.lead == 0


def test_segments_are_of_the_clips_own_frames():
    """9 of 10: five and four, the frame before them in the first; more than there are is refused."""
    found = divide_frames(Needs(), 2, {}, [10], 1)
    assert found == {10: [0, *[0] * 5, *[1] * 4]}
    with pytest.raises(InputError, match="10 segments, and the latents have 9 frames"):
        divide_frames(Needs(), 10, {}, [10], 1)


def test_learned_positions_take_one_size(saved):
    kind = KINDS["cogvideox 5b i2v"]
    family = kind.open(saved(kind.save))
    family.check_clip(*kind.size)
    for size in ((17, 32, 48), (9, 48, 48), (9, 32, 64)):
        with pytest.raises(InputError, match="learned positions; allowed are 9, 32 and 48"):
            family.check_clip(*size)


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("transformer", {"in_channels": 8}, ["takes 8 channels", "CogVideoXPipeline", "image-to-video"]),
        ("transformer", {"in_channels": 9}, ["takes 9 channels and gives 4"]),
        ("transformer", {"patch_size_t": 4}, ["joins 4 latent frames", "CogVideoX 1.5 joins 2"]),
        ("scheduler", {"prediction_type": "epsilon"}, ["prediction_type is 'epsilon'", "'v_prediction'"]),
    ],
)
def test_another_model_is_refused_before_any_weight_is_loaded(folder, tmp_path, part, values, words):
    with pytest.raises(InputError) as refused:
        KIND.open(changed(folder, tmp_path, part, **values))
    assert all(word in str(refused.value) for word in words), refused.value


def test_attention_that_takes_no_backend_is_said_before_the_first_step(folder, world, tmp_path):
    config = load_config(Road(KIND, folder, world, tmp_path).config(attention="xformers"))
    with pytest.raises(
        InputError, match="diffusers calls torch's attention in a CogVideoXTransformer3DModel"
    ):
        build_policy(config, CPU)


@pytest.mark.slow
def test_compiled_blocks_train_alike(folder, world, tmp_path):
    """diffusers names no repeated block of this model; the family does."""
    config = Road(KIND, folder, world, tmp_path).config()
    run_pgdpo("prepare", config)
    for name, backend in (("eager", "none"), ("compiled", "aot_eager")):
        run_pgdpo("train", config, f"name={name}", f"model.compile={backend}")
    eager, compiled = (losses(tmp_path / "out", name) for name in ("eager", "compiled"))
    assert eager == pytest.approx(compiled, rel=1e-6)
