"""CogVideoX's own: timesteps of a schedule, models beside it, attention that takes no backend."""

import pytest
import torch

from pgdpo.config.read import load_config
from pgdpo.engine.policy import build_policy
from pgdpo.messages.errors import InputError
from tests.models.families import KINDS
from tests.models.road import CPU, PROMPT, Road, changed, conditioning_of
from tests.worlds import losses, run_pgdpo

KIND = KINDS["cogvideox 2b"]


@pytest.fixture(scope="module")
def folder(saved):
    return saved(KIND.save)


def test_every_sigma_stands_for_a_timestep_of_the_schedule(folder):
    sigma = torch.tensor([0.0, 1e-9, 0.5, 1 - 2**-24, 1.0])
    assert KIND.open(folder).timestep(sigma).tolist() == [0, 0, 500, 999, 999]


def test_no_token_of_text_is_masked(folder):
    """Padding is stored too."""
    assert conditioning_of(KIND.open(folder), [PROMPT])["prompt_mask"].all()


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
