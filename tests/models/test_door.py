"""The test at the door: training tells a transformer, bit for bit, what its own pipeline tells it at that step."""

import copy
import functools
import json

import pytest
import torch

from pgdpo.checkpoints.identity import run_identity
from pgdpo.checkpoints.resume import check_resume, described
from pgdpo.config import AdapterConfig, SampleSettings
from pgdpo.config.read import load_config
from pgdpo.data.visits.loading import collate
from pgdpo.messages.errors import InputError
from pgdpo.models.adapters.adapter import add_adapter
from pgdpo.models.weights.kept import compute_kept_in_fp32
from pgdpo.training.opening import open_pairs
from pgdpo.training.trainer import Trainer
from tests.models.door import Door, differences, recorded
from tests.models.families import FAMILIES, KINDS

pytestmark = pytest.mark.usefixtures("eager_kernels")

# All weights, held in fp32 and computed in bf16.
WHOLE = ("wan 2.2 ti2v 5b i2v", "hunyuan_video")
EVERY = [
    pytest.param(name, precision, True, id=f"{name} {precision}")
    for name in KINDS
    for precision in ("bf16", "fp32")
]
EVERY += [
    pytest.param(
        name, "bf16", False, id=f"{name} bf16 whole", marks=() if name in WHOLE else pytest.mark.slow
    )
    for name in KINDS
]


# HunyuanVideo's pipelines whose latents come in the transformer's dtype.
ROUNDED = [
    name for name, kind in KINDS.items() if kind.family == "hunyuan_video" and name != "hunyuan_video i2v"
]


def named(name: str, precision: str, step: int) -> dict[str, str]:
    """The differences that are meant, by `door.DIFFERENCES`; all other arguments are equal to the bit.

    - attention_kwargs: nobody gives any.
    - encoder_hidden_states_image: Wan's image-to-video pipeline names it also where no CLIP image is attended to.
    - text and its mask, where the transformer has one: the pipeline encodes padding, which the mask hides.
    - HunyuanVideo's timestep in bf16: the pipeline's first latents, and with them its first timestep, are fp32. It is
      1000, which bf16 holds; all later ones come in bf16. Where the image is the first latent frame, they stay fp32.
    """
    found = {"attention_kwargs": "absent"}
    if name.startswith("wan 2.2") and " i2v" in name:
        found["encoder_hidden_states_image"] = "absent"
    if KINDS[name].masks_text:
        found |= {"encoder_hidden_states": "padding", "encoder_attention_mask": "padding"}
    if KINDS[name].sound:  # its text is never masked; no part of its guidance is at work
        found |= dict.fromkeys(("perturbation_mask", "spatio_temporal_guidance_blocks"), "absent")
        heard = ("", "audio_") if KINDS[name].hears else ("",)
        found |= {
            f"{stream}{part}": "padding"
            for stream in heard
            for part in ("encoder_hidden_states", "encoder_attention_mask")
        }
    if name in ROUNDED and precision == "bf16" and step == 0:
        found["timestep"] = "dtype"
    return found


@pytest.fixture(scope="module")
def doors(saved):
    """`doors(name, precision, adapter)`: a door and its calls, made once."""

    @functools.cache
    def opened(name: str, precision: str, adapter: bool):
        door = Door(KINDS[name], saved(KINDS[name].save), precision, adapter=adapter)
        return door, list(door.calls())

    return lambda name, precision="bf16", adapter=True: opened(name, precision, adapter)


@pytest.mark.parametrize(("name", "precision", "adapter"), EVERY)
def test_training_tells_what_the_pipeline_tells(name, precision, adapter, doors):
    """Held alike, and with an adapter that adds nothing yet, the family also predicts alike.

    Up to where a matrix lies in memory and how long trimmed text is, by which products are rounded. (Timesteps of 0.4
    more, or guidance 6000, change these predictions by 3% to 6%.)
    """
    door, calls = doors(name, precision, adapter)
    assert calls
    for step, (ours, theirs, predicted, expected) in enumerate(calls):
        if KINDS[name].sound and not KINDS[name].hears:  # one empty latent stands for the sound
            ours, theirs = without_sound(ours), without_sound(theirs)
        kinds = differences(door.transformer, ours, theirs)
        assert {key: kind for key, kind in kinds.items() if kind != "equal"} == named(name, precision, step)
        if adapter and precision == "fp32":
            torch.testing.assert_close(predicted, expected, rtol=1e-5, atol=1e-6)
        elif adapter:
            off = (predicted.double() - expected.double()).norm() / expected.double().norm()
            rounds = (
                KINDS[name].masks_text or KINDS[name].sound
            )  # whose pipeline masks with a mask that hides nothing
            assert off < (5e-3 if rounds else 2e-3)


def without_sound(told: dict) -> dict:
    """What is told of the picture, to streams that don't look at each other."""
    assert told["isolate_modalities"]
    return {name: value for name, value in told.items() if name.split("_")[0] not in ("audio", "isolate")}


@pytest.mark.parametrize(
    ("name", "argument", "spoil"),
    [
        ("wan 2.1 t2v", "timestep", lambda told: told + 1),
        ("wan 2.2 ti2v 5b i2v", "timestep", lambda told: told.flip(1)),
        ("wan 2.1 i2v", "encoder_hidden_states_image", lambda told: told.float() * 1.001),
        ("wan 2.1 flf2v", "encoder_hidden_states_image", lambda told: told.flip(0)),
        ("wan 2.1 flf2v", "hidden_states", lambda told: told.roll(1, 2)),
        ("hunyuan_video", "guidance", lambda told: torch.full_like(told.float(), 6000)),
        ("hunyuan_video", "encoder_attention_mask", torch.zeros_like),
        ("ltx", "encoder_hidden_states", lambda told: told + 1),
        ("ltx", "rope_interpolation_scale", lambda told: (told[0] * 2, *told[1:])),
        ("ltx", "rope", lambda told: (told[0].flip(1), told[1])),
        ("cogvideox 5b", "image_rotary_emb", lambda told: (told[1], told[0])),
        ("cogvideox 2b", "hidden_states", lambda told: told.transpose(1, 2).contiguous()),
        # The image's channels, one frame later.
        (
            "cogvideox 5b i2v",
            "hidden_states",
            lambda told: torch.cat([told[:, :, :4], told[:, :, 4:].roll(1, 1)], 2),
        ),
        ("cogvideox 1.5", "image_rotary_emb", lambda told: (told[0].roll(1, 0), told[1])),
        ("cogvideox 1.5 i2v", "ofs", lambda told: told + 1),
        ("ltx2", "video_coords", lambda told: told.flip(2)),
        ("ltx2", "audio_coords", lambda told: told.flip(2)),
        ("ltx2", "audio_encoder_hidden_states", lambda told: told + 1),
        ("ltx2", "audio_hidden_states", lambda told: told.roll(1, 1)),
        ("ltx2 i2v", "timestep", lambda told: told.flip(1)),
        ("ltx2 i2v", "audio_timestep", lambda told: told + 1),
        ("ltx2 i2v", "use_cross_timestep", lambda told: not told),
    ],
)
def test_another_number_is_found(name, argument, spoil, doors):
    door, calls = doors(name)
    ours, theirs, *_ = calls[0]
    with pytest.raises(AssertionError):
        differences(door.transformer, ours | {argument: spoil(ours[argument])}, theirs)


@pytest.mark.parametrize("name", ["wan 2.1 t2v", "hunyuan_video"])
def test_sampling_under_autocast_tells_what_training_tells(name, doors):
    """Weights that are held in fp32 while bf16 is computed in: the pipeline would go by how they are held."""
    door, _ = doors(name, adapter=False)
    noise = torch.randn(2, *door.batch["latents"].shape[1:])
    conditioning = {key: tensor.float() for key, tensor in door.batch["conditioning"].items()}
    conditioning["prompt_mask"] = door.batch["conditioning"]["prompt_mask"]
    with recorded(door.transformer) as sampled, torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        door.family.sample(door.transformer, noise, conditioning, conditioning, SampleSettings(4, 1.0))
    scheduler = door.pipeline.scheduler
    scheduler.set_timesteps(4) if name.startswith("wan") else scheduler.set_timesteps(
        sigmas=[1, 0.75, 0.5, 0.25]
    )
    with recorded(door.transformer) as trained:
        for sigma in scheduler.sigmas[:4]:
            door.forward(noise.to(torch.bfloat16), sigma.expand(2), conditioning)
    for (sample, _), (train, _) in zip(sampled, trained, strict=True):
        for told in {"timestep", "guidance"} & train.keys():
            assert torch.equal(sample[told].double(), train[told].double()), told
        assert "guidance" not in train or train["guidance"].tolist() == [6016, 6016]


def test_policy_and_reference_are_told_the_same(config_file):
    """Through the trainer's engine, in bf16: two calls a step, equal to the bit, and so the first loss is ln 2."""

    config = load_config(config_file, ["train.precision=bf16", "train.global_batch_groups=2"])
    trainer = Trainer(config)
    batch = collate([trainer.task.pairs[index, 0] for index in range(config.train.micro_batch_groups)])
    with recorded(trainer.policy.engine.module) as calls:
        output, *_ = trainer.step.group_loss(batch)
    (reference, answer), (policy, other) = calls
    assert policy["hidden_states"].dtype == policy["encoder_hidden_states"].dtype == torch.bfloat16
    assert policy["timestep"].dtype == torch.int64
    assert differences(trainer.policy.engine.module, policy, reference) == dict.fromkeys(policy, "equal")
    assert torch.equal(answer[0], other[0]) and float(output.loss) == float(torch.tensor(2.0).log())


def test_what_diffusers_keeps_in_fp32_computes_in_fp32(saved):
    """Wan's time embedder, under autocast, to the bit as without it; with an adapter, in a copy, with its gradient."""
    transformer = FAMILIES["wan"].open(saved(FAMILIES["wan"].save)).load_transformer(dtype=torch.bfloat16)
    add_adapter(transformer, AdapterConfig(target_modules=["linear_1", "to_q"], rank=2), seed=0)
    steps = torch.randn(3, 16)
    for model in (transformer, copy.deepcopy(transformer)):
        embedder = model.condition_embedder.time_embedder
        plain = type(embedder).forward(embedder, steps)
        with torch.autocast("cpu", torch.bfloat16):
            found = embedder(steps)
            half = type(embedder).forward(embedder, steps)
        assert found.dtype == torch.float32 and torch.equal(found, plain)
        assert half.dtype == torch.bfloat16 and not torch.equal(half.float(), plain)
        found.sum().backward()
        trained = [p for p in embedder.parameters() if p.requires_grad]
        assert trained and all(p.grad is not None for p in trained)
        with torch.no_grad():
            next(p for p in embedder.parameters()).add_(1)  # a copy computes with its own weights
        assert not torch.equal(embedder(steps), plain)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("wan 2.1 i2v", ["time_embedder"]), ("hunyuan_video", []), ("cogvideox 5b", []), ("ltx", [])],
)
def test_only_what_has_a_matrix_product_is_changed(name, kept, doors):
    """Norms cast their own inputs, tables are added in fp32: nothing around them."""
    transformer = doors(name)[0].family.load_transformer(dtype=torch.bfloat16)
    changed = [path for path, module in transformer.named_modules() if "forward" in vars(module)]
    assert [path.rpartition(".")[2] for path in changed] == kept
    state = set(transformer.state_dict())
    assert set(compute_kept_in_fp32(transformer).state_dict()) == state


def test_a_run_that_was_told_other_numbers_is_not_gone_on_with(config_file):
    """As one that was begun before timesteps were rounded: its record says nothing of them."""

    config = load_config(config_file)
    identity = run_identity(config, open_pairs(config, "train"))
    state = json.loads(json.dumps({"step": 2, **described(config, identity)}))
    check_resume(config.run_dir, state, config, identity, ())
    del state["identity"]["told_rounded"]
    with pytest.raises(InputError, match="its told_rounded is None, .*'timesteps, to whole ones by UniPC"):
        check_resume(config.run_dir, state, config, identity, ())
