"""What validation loads for itself, it lets go."""

import contextlib

import pytest
from diffusers import WanTransformer3DModel

from pgdpo.config.read import load_config
from pgdpo.guards.signals import StopSignals
from pgdpo.training.trackers import Trackers
from tests.models.families import KINDS
from tests.models.road import Road
from tests.training import expert_life
from tests.worlds import run_pgdpo

KIND = KINDS["wan 2.2 t2v a14b low"]
# Every tensor is partitioned, small ones too.
ZERO_3 = ["train.zero_stage=3", "train.global_batch_groups=2", "train.micro_batch_groups=1"]


@pytest.mark.usefixtures("eager_kernels")
def test_the_other_expert_is_held_for_as_long_as_clips_are_sampled(saved, world, tmp_path, ranks):
    """On one rank and, under ZeRO-3, in shares on two, with the clips of one that is whole."""
    folder = saved(KIND.save)
    config = Road(KIND, folder, world, tmp_path).config()
    run_pgdpo("prepare", config)
    often = [
        "evaluate.every=1",
        "evaluate.every_pairs=0",
        "evaluate.every_prompts=1",
        "evaluate.sampling_steps=2",
        "train.steps=1",
    ]
    often += ["train.precision=bf16"]
    (alone,) = ranks.call(expert_life.lives, str(config), often, ranks=1)
    shared = ranks.call(expert_life.lives, str(config), [*often, "name=shared", *ZERO_3])
    tensors = len(WanTransformer3DModel.from_pretrained(folder / "transformer").state_dict())
    for found in (alone, *shared):
        assert found["seen"] == tensors and found["alive"] == 0
        assert found["equal"]
    assert alone["whole"] == tensors
    assert [found["whole"] for found in shared] == [0, 0]
    assert shared[0]["latents"] == shared[1]["latents"]


def test_ranks_share_the_prompts(config_file, ranks):
    """Three on two ranks, with whole weights and with shards: the clips of one rank."""
    still = ["train.steps=1", "train.learning_rate=1e-30", "evaluate.every=1", "evaluate.every_prompts=3"]
    ranks.train(config_file, {"alone": still}, ranks=1)
    ranks.train(config_file, {"whole": still, "sharded": [*still, "train.zero_stage=3"]})
    found = {name: clips(config_file.parent / "out" / name) for name in ("alone", "whole", "sharded")}
    assert found["whole"] == found["sharded"] == found["alone"] and len(found["alone"]) == 4


@pytest.mark.usefixtures("eager_kernels")
def test_what_sampled_trains_on_as_it_was(config_file, monkeypatch):
    """Clips are sampled in evaluation mode; the mode from before is there again, after an error too."""
    from pgdpo.training.trainer import Trainer

    few = ["train.steps=1", "evaluate.every=1", "evaluate.every_prompts=1", "evaluate.sampling_steps=1"]
    run = Trainer(load_config(str(config_file), few))
    transformer, sampler, sampled = run.policy.engine.module, run.held_out._clips._sampler, []
    sample = sampler.sample

    def noted(*asked):
        sampled.append(modes(transformer))
        return sample(*asked)

    monkeypatch.setattr(sampler, "sample", noted)
    assert modes(transformer) == {True}
    with StopSignals() as signals, contextlib.closing(Trackers(run.config, start=0)) as log:
        run.held_out._clips.show(1, transformer, log, signals)
        assert modes(transformer) == {True}
        monkeypatch.setattr(run.policy.family, "sample", lambda *told: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.held_out._clips.show(2, transformer, log, signals)
    assert modes(transformer) == {True} and sampled == [{False}, {False}]


def modes(module):
    """Of all of its parts: whether they are in training mode."""
    return {part.training for part in module.modules()}


def clips(run):
    """The files of the first validation, three clips and how they were sampled."""
    return {path.name: path.read_bytes() for path in (run / "validation/step-00000001").iterdir()}
