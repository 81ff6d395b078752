"""LTX-Video's own: the frame rate that is told to the transformer, and the frames whose pictures it is given."""

import functools
import inspect
from types import SimpleNamespace

import pytest
import torch

from pgdpo.checkpoints.identity import base_identity, told_rounded
from pgdpo.config import SampleSettings
from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from tests.models.door import recorded
from tests.models.families import FAMILIES, KINDS
from tests.models.road import CPU, PROMPT, Road, conditioning_of, open_pipeline
from tests.models.tiny_pipelines import save_tiny_ltx

CONDITIONS = KINDS["ltx 0.9.5"]


def test_a_run_with_another_frame_rate_is_another_run(saved, world, tmp_path):
    """A checkpoint, or cached errors, of one frame rate must not be taken for those of another."""
    kind = FAMILIES["ltx"]
    folder = saved(kind.save)
    config = load_config(Road(kind, folder, world, tmp_path).config())
    identities = {base_identity(config, kind.open(folder, frame_rate=rate)) for rate in (None, 25, 8)}
    assert len(identities) == 2
    pictured = {base_identity(config, kind.open(folder, keyframes=frames)) for frames in (None, [], [0])}
    assert len(pictured) == 2


def test_a_folder_that_is_told_other_positions_than_before_is_another_run(saved):
    """Earlier versions took the folder of an LTXConditionPipeline for an LTXPipeline's, which has other positions."""
    for name, told in (
        ("ltx", False),
        ("ltx i2v", False),
        ("ltx 0.9.5", True),
        ("ltx 0.9.5 keyframes", True),
    ):
        kind = KINDS[name]
        model = kind.open(saved(kind.save)).model
        config = SimpleNamespace(model=model, train=SimpleNamespace(precision="fp32"))
        assert ("positions" in str(told_rounded(config))) == told


def test_pairs_that_were_prepared_for_other_keyframes_are_not_taken(saved):
    folder = saved(CONDITIONS.save)
    families = [CONDITIONS.open(folder, keyframes=frames) for frames in ([], [0], [0, 3], [0, -1])]
    encoders = [family.load_encoders(CPU) for family in families]
    assert len({each.fingerprint for each in encoders}) == 4
    assert [each.parts["clips"].get("keyframes") for each in encoders] == [None, "0", "0,3", "0,-1"]


@pytest.mark.parametrize(
    ("pipeline", "version", "keys", "opened"),
    [
        ("LTXPipeline", "0.9.0", {}, ("LTXPipeline", ())),
        ("LTXPipeline", "0.9.0", {"keyframes": [0]}, ("LTXImageToVideoPipeline", (0,))),
        ("LTXPipeline", "0.9.0", {"task": "image_to_video"}, ("LTXImageToVideoPipeline", (0,))),
        # As scripts/convert_ltx_to_diffusers.py names the folder of 0.9.5.
        ("LTXPipeline", "0.9.5", {"keyframes": [-1, 0]}, ("LTXConditionPipeline", (0, -1))),
        ("LTXImageToVideoPipeline", "0.9.0", {}, ("LTXImageToVideoPipeline", (0,))),
        ("LTXImageToVideoPipeline", "0.9.0", {"task": "text_to_video"}, ("LTXPipeline", ())),
        ("LTXConditionPipeline", "0.9.5", {}, ("LTXConditionPipeline", ())),
        ("LTXConditionPipeline", "0.9.5", {"task": "image_to_video"}, ("LTXConditionPipeline", (0,))),
        ("LTXConditionPipeline", "0.9.5", {"keyframes": [7, 3]}, ("LTXConditionPipeline", (3, 7))),
    ],
)
def test_the_folder_says_what_it_is_for_and_the_keys_go_before_it(pipeline, version, keys, opened, saved):
    folder = saved(kept(pipeline, version))
    family = FAMILIES["ltx"].open(folder, **keys)
    assert (family.pipeline_class.__name__, family.pictures) == opened
    assert family.image_names == (("image_latents",) if family.pictures else ())


@functools.cache
def kept(pipeline: str, version: str):
    return functools.partial(save_tiny_ltx, pipeline=pipeline, version=version)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("[0,0]", "name each frame once"),
        ("[-2]", r"model.keyframes.*-2.*(≥|greater than or equal to) -1"),
        ("[0]", "a task is short for keyframes .*image_to_video: .0.*leave model.task out"),
    ],
)
def test_keyframes_that_mean_nothing_are_refused(key, words):
    task = ["model.task=image_to_video"] if key == "[0]" else []
    with pytest.raises(InputError, match=words):
        load_config("ltx_video.yaml", [f"model.keyframes={key}", *task])


@pytest.mark.parametrize(
    ("keyframes", "beside", "weights"),
    [([], 0, None), ([0], 0, [0, 1]), ([0, -1], 6, [0, 1]), ([3], 6, None)],
)
def test_what_is_given_is_computed_and_is_no_prediction(keyframes, beside, weights, saved):
    """The tokens that the transformer computes, and the latent frames whose error counts."""
    kind = CONDITIONS
    family = kind.open(saved(kind.save), keyframes=keyframes)
    shape = family.latent_shape(*kind.size)
    assert family.tokens(shape) == 12 + beside
    mask = family.loss_mask(torch.empty(2, *shape), {})
    assert (mask if mask is None else mask.tolist()) == weights
    example = family.example_conditioning(2, shape)
    transformer = family.load_transformer(dtype=torch.float32)
    with recorded(transformer) as calls:
        found = family.predict(transformer, torch.randn(2, *shape), torch.full((2,), 0.5), example)
    assert found.shape == (2, *shape) and calls[0][0]["hidden_states"].shape[1] == 12 + beside


def test_a_picture_beside_the_clip_stands_at_its_second(saved):
    """Positions by hand: a latent frame stands where its first frame does, a picture at its frame; 32 pixels a side."""
    kind = CONDITIONS
    family = kind.open(saved(kind.save), keyframes=[3, -1], frame_rate=10)
    shape = family.latent_shape(*kind.size)
    transformer = family.load_transformer(dtype=torch.float32)
    with recorded(transformer) as calls:
        family.predict(
            transformer, torch.randn(1, *shape), torch.tensor([0.5]), family.example_conditioning(1, shape)
        )
    told = calls[0][0]
    rows = [
        [frame / 10, row * 32.0, column * 32.0]
        for frame in (3, 8, 0, 1)
        for row in range(2)
        for column in range(3)
    ]
    torch.testing.assert_close(told["video_coords"][0].T, torch.tensor(rows))
    assert told["timestep"][0].tolist() == [0.0] * 12 + [500.0] * 12


def test_a_flow_shift_moves_levels_and_what_is_told_of_them_alike(saved):
    """LTXConditionPipeline's scheduler would shift the levels alone: a step from what is told goes astray."""
    from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

    kind = CONDITIONS
    folder = saved(kind.save)
    family = kind.open(folder)
    prompt = conditioning_of(family, [PROMPT])
    transformer = family.load_transformer(dtype=torch.float32)
    noise = torch.randn(1, *family.latent_shape(*kind.size))
    levels = linear_quadratic_schedule(4).double()
    levels = torch.cat([3 * levels / (1 + 2 * levels), torch.zeros(1, dtype=torch.float64)])
    with recorded(transformer) as calls:
        found = family.sample(transformer, noise, prompt, prompt, SampleSettings(4, 1.0, flow_shift=3.0))
    told = torch.stack([call["timestep"].flatten()[0] for call, _ in calls])
    torch.testing.assert_close(told.double(), 1000 * levels[:-1])
    latents = noise
    for here, there in zip(levels[:-1], levels[1:], strict=True):  # Euler's method
        with torch.no_grad():
            at = here.float().expand(1)
            latents = latents + (there - here).float() * family.predict(transformer, latents, at, prompt)
    torch.testing.assert_close(found, latents, rtol=1e-4, atol=1e-5)


def test_the_pipelines_noise_on_pictures_is_what_is_left_out(saved):
    """`image_cond_noise_scale`, 0.15 by default: noise on tokens that are told as clean, and on no other."""
    kind = KINDS["ltx 0.9.5 keyframes"]
    folder = saved(kind.save)
    pipeline = open_pipeline(kind, folder)
    default = inspect.signature(pipeline.__call__).parameters["image_cond_noise_scale"].default
    told = {}
    for scale in (0.0, default):
        with recorded(pipeline.transformer) as calls, torch.no_grad():
            pipeline(
                prompt=PROMPT,
                num_inference_steps=2,
                guidance_scale=1.0,
                output_type="latent",
                generator=torch.Generator(CPU).manual_seed(0),
                **kind.call | {"image_cond_noise_scale": scale},
                **kind.images_for(1),
            )
        told[scale] = calls[0][0]
    clean, noisy = (told[scale]["hidden_states"] for scale in (0.0, default))
    assert default == 0.15 and torch.equal(told[0.0]["timestep"], told[default]["timestep"])
    changed = (clean != noisy).any(-1)[0]
    assert torch.equal(changed, told[default]["timestep"][0] == 0)
    assert (noisy - clean)[:, changed].std() == pytest.approx(0.15, rel=0.2)
