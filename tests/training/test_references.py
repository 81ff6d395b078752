"""The reference held in every way, through whole runs: equal losses, what is refused, what a resumed run continues."""

import contextlib
import math

import numpy as np
import pytest
import torch

from pgdpo.checkpoints.shards import ShardReader
from pgdpo.messages.errors import InputError
from tests.worlds import losses, metrics, run_pgdpo

LN2 = float(torch.tensor(math.log(2), dtype=torch.float32))
FULL = ("model.adapter=null", "train.learning_rate=1e-5")


def train(config_file, name, *overrides, options=()):
    run_pgdpo("train", config_file, *options, f"name={name}", *overrides)
    return losses(config_file.parent / "out", name)


def relative(first, second) -> float:
    first, second = np.array(first), np.array(second)
    return float(np.abs((first - second) / first).max())


@pytest.mark.parametrize("weights", [(), FULL], ids=["lora", "full"])
def test_adapter_frozen_and_cached_give_the_same_losses(config_file, weights):
    steps = ("train.steps=6", *weights)
    run_pgdpo("reference", config_file, "train.cached_draws=2", *weights)
    frozen = train(config_file, "frozen", "train.reference=frozen", *steps)
    cached = train(config_file, "cached", "train.reference=cached", "train.cached_draws=2", *steps)
    assert frozen[0] == cached[0] == LN2 and len(set(frozen)) == 6
    assert relative(frozen, cached) <= 1e-6
    assert metrics(config_file.parent / "out", "cached")[0]["margin"] == 0.0
    if not weights:
        assert train(config_file, "adapter", "train.reference=adapter", *steps) == frozen


def trainer(config_file, *overrides):
    """A run of one step, not begun."""
    from pgdpo.config.read import load_config
    from pgdpo.training.trainer import Trainer

    return Trainer(load_config(str(config_file), ["train.steps=1", *overrides]))


def forwards_of_a_step(run, monkeypatch, inside=None) -> list[tuple[int, bool]]:
    """(samples, with gradients) of each forward of any transformer in a run, inside a context."""
    seen, kind = [], type(run.policy.engine.module)
    forward = kind.forward

    def noted(self, hidden_states, *arguments, **keywords):
        if hidden_states.device.type == "meta":  # the FLOP counter's
            return forward(self, hidden_states, *arguments, **keywords)
        seen.append((len(hidden_states), torch.is_grad_enabled()))
        with inside or contextlib.nullcontext():
            return forward(self, hidden_states, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", noted)
        run.train()
    return seen


def checkpoint(config_file, name, step) -> tuple[dict, dict]:
    """(policy's, reference's) trained tensors after a step, under the policy's names."""
    folder = config_file.parent / "out" / name / "checkpoints" / f"step-{step:08d}"
    weights, extra = ShardReader(folder, "weights"), ShardReader(folder, "extra")
    return dict(weights), {key.removeprefix("reference."): tensor for key, tensor in extra.items()}


@pytest.mark.usefixtures("eager_kernels")
@pytest.mark.parametrize(
    "weights", [pytest.param((), id="lora"), pytest.param(FULL, id="full", marks=pytest.mark.slow)]
)
def test_a_moving_reference_follows_the_policy_and_is_resumed_exactly(config_file, weights):
    keep = ("train.checkpoint_every=1", "train.keep_checkpoints=9", *weights)
    ema = ("train.reference=ema", "train.reference_ema_alpha=0.25", *keep)
    straight = train(config_file, "ema", *ema)
    steps = [checkpoint(config_file, "ema", step) for step in (1, 2, 3, 4)]
    names = steps[0][0].keys()
    assert names == steps[0][1].keys()
    for name in names:
        expected = steps[0][1][name].double()
        for policy, reference in steps[1:]:
            expected = 0.75 * expected + 0.25 * policy[name].double()
            torch.testing.assert_close(reference[name].double(), expected, rtol=1e-6, atol=1e-9)
    assert any(not torch.equal(steps[3][0][name], steps[3][1][name]) for name in names)
    train(config_file, "stopped", "train.steps=2", *ema)
    assert train(config_file, "stopped", *ema, options=["--resume"]) == straight
    train(config_file, "fixed", "train.steps=1", *weights)
    with pytest.raises(InputError, match="holds no moving reference"):
        train(config_file, "fixed", *ema, options=["--resume", "--allow-change", "train"])
    # A reference that becomes the policy after every second step leaves no margin at the steps that follow.
    synced = train(config_file, "synced", "train.reference=synced", "train.reference_sync_every=2", *keep)
    assert synced[0] == synced[2] == LN2 and LN2 not in (synced[1], synced[3])


@pytest.mark.usefixtures("eager_kernels")
def test_a_cached_step_holds_no_reference_and_runs_none(config_file, monkeypatch):
    full = ("model.adapter=null", "train.cached_draws=1")
    run_pgdpo("reference", config_file, *full)
    live = forwards_of_a_step(trainer(config_file, "name=live"), monkeypatch)
    assert live == 2 * [(4, False), (4, True)]
    run = trainer(config_file, "name=cached", "train.reference=cached", *full)
    assert forwards_of_a_step(run, monkeypatch) == 2 * [(4, True)]
    held = [
        value
        for value in vars(run.step.reference).values()
        if isinstance(value, torch.nn.Module) or callable(value)
    ]
    assert held == []


@pytest.mark.parametrize("weights", [(), FULL], ids=["lora", "full"])
def test_chosen_and_rejected_one_after_the_other_give_the_joint_gradient(config_file, weights):
    found = {}
    for batching in ("joint", "split"):
        # beta multiplies the rounding of predictions, which differs between batch sizes.
        run = trainer(
            config_file, f"name={batching}", f"train.group_batching={batching}", "objective.beta=50", *weights
        )
        generator = torch.Generator().manual_seed(1)
        trained = [p for p in run.policy.engine.module.parameters() if p.requires_grad]
        for parameter in trained:  # away from the reference, so that the two sides differ
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
        run.train()
        (values,) = metrics(config_file.parent / "out", batching)
        # Adam's first moment after one step: a tenth of the gradient.
        moments = torch.cat([run.policy.engine.optimizer.state[p]["exp_avg"].flatten() for p in trained])
        found[batching] = (
            values["loss"],
            values["gradient_norm"],
            moments,
        )  # Adam's first moment: a tenth of the gradient
    loss, norm, gradient = found["joint"]
    assert loss != LN2 and abs(loss - found["split"][0]) <= 1e-6 * loss
    assert abs(norm - found["split"][1]) <= 1e-6 * norm
    assert (gradient - found["split"][2]).norm() <= 1e-5 * gradient.norm()


def test_split_holds_half_the_activations(config_file, monkeypatch):
    peaks = {}
    for batching in ("joint", "split"):
        run = trainer(config_file, f"name={batching}", f"train.group_batching={batching}")
        saved = SavedActivations(run.policy.engine.module)
        seen = forwards_of_a_step(run, monkeypatch, inside=saved)
        peaks[batching] = saved.peak
    assert seen == 2 * (2 * [(2, False)] + 2 * [(2, False)] + 2 * [(2, True)])
    assert peaks["split"] < 0.55 * peaks["joint"]


class SavedActivations(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that autograd keeps for the backward pass beside the weights, now and at most."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.now = self.peak = 0
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        super().__init__(lambda tensor: Kept(self, tensor), lambda kept: kept.tensor)


class Kept:
    def __init__(self, saved: SavedActivations, tensor: torch.Tensor) -> None:
        self.saved, self.tensor = saved, tensor
        self.size = 0 if tensor.untyped_storage().data_ptr() in saved.weights else tensor.nbytes
        saved.now += self.size
        saved.peak = max(saved.peak, saved.now)

    def __del__(self) -> None:
        self.saved.now -= self.size
