"""What a spike of the loss is: none where a loss that became small comes back, for every objective that trains."""

import math
import statistics

import pytest
import torch

from pgdpo.guards.spikes import FIRST, LOWEST, LossScale
from pgdpo.objectives import PairInfo, available, build_objective, get_spec
from pgdpo_kernels import pair_errors
from tests.worlds import metrics, run_pgdpo, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels")

FACTOR = 30.0  # the default of train.spike_factor
TRAINABLE = [name for name in available() if get_spec(name).needs.noisy != "siblings"]


LN2 = math.log(2)  # DPO's untrained loss


def scale_of(losses, untrained=LN2) -> LossScale:
    scale = LossScale()
    for loss in losses:
        scale.add(loss, untrained)
    return scale


class TestScale:
    def test_an_untrained_loss_after_small_ones_is_no_fault(self):
        scale = scale_of([LN2] * FIRST + [0.001] * 100)
        assert scale.spike(0.71, FACTOR) is None
        found = scale.spike(31 * LN2, FACTOR)
        assert found.startswith("the loss 21.49 is 31 times its scale (0.6931, the untrained loss;")

    def test_each_part_may_be_the_largest(self):
        assert "the running median;" in scale_of([0.7] * FIRST + [50.0] * 60).spike(1600.0, FACTOR)
        signs = [1.0, -1.0] * (FIRST // 2)  # losses that cancel have no other scale
        spread = scale_of([0.1 * sign for sign in signs] + [1e-4] * 60, untrained=1e-4)
        assert spread.spike(5.9, FACTOR) is None
        assert "the spread of the first steps;" in spread.spike(-6.1, FACTOR)

    def test_a_policy_that_was_trained_before_has_the_objectives_scale_all_the_same(self):
        assert scale_of([0.001] * 50).spike(0.71, FACTOR) is None

    def test_before_enough_is_known_nothing_is_a_spike(self):
        assert scale_of([1.0] * (FIRST - 1)).spike(1e9, FACTOR) is None
        assert scale_of([1.0] * FIRST).spike(1e9, FACTOR) is not None
        assert scale_of([0.0] * FIRST, untrained=0.0).spike(1e9, FACTOR) is None

    @pytest.mark.parametrize("stop", [4, FIRST, 40])
    def test_a_resumed_run_decides_as_the_straight_one(self, stop):
        losses = [math.sin(step) + step / 20 for step in range(60)]
        straight, resumed = scale_of(losses, 0.3), LossScale()
        resumed.load_state_dict(scale_of(losses[:stop], 0.3).state_dict())
        for loss in losses[stop:]:
            resumed.add(loss, 0.3)
        assert resumed.parts() == straight.parts()

    def test_the_state_of_the_version_before_loads(self):
        """It knew a tenth of the first ten losses' median as its `floor`, None before the tenth step."""
        scale = LossScale()
        scale.load_state_dict({"losses": [0.001] * 100, "floor": LOWEST * 0.7})
        assert scale.parts()["untrained loss"] == pytest.approx(0.7)
        assert scale.spike(0.71, FACTOR) is None and scale.spike(22.0, FACTOR) is not None
        scale.load_state_dict({"losses": [0.7] * 4, "floor": None})
        assert not scale.known
        for _ in range(FIRST - 4):
            scale.add(0.7, 0.7)
        assert scale.spike(22.0, FACTOR) is not None


SHAPE = (2, 4, 2, 2)  # of a sample
SIZE = math.prod(SHAPE)
PAIRS, BATCH = 8, 4


class TinyRun:
    """Eight pairs, a linear denoiser, a low-rank adapter, Adam: its loss falls to 1e-6 and returns, as a toy's."""

    def __init__(self, name: str) -> None:
        spec = get_spec(name)
        large = "beta" in spec.options and spec.options["beta"].default >= 1000
        self.objective = build_objective(
            name, **({"beta": 500.0} if large else {})
        )  # as the toy's configurations
        self.random = torch.Generator().manual_seed(0)
        self.latents = self.normal(2, PAIRS, SIZE)
        self.reference = -0.5 * torch.eye(SIZE) + 0.05 * self.normal(SIZE, SIZE)
        self.mask = (self.uniform(PAIRS, 1, 4, 2, 2) > 0.5).float()
        self.columns = {
            "probability": 0.05 + 0.9 * self.uniform(PAIRS),
            "reward_margin": 0.5 + self.normal(PAIRS),
            "gap_frequency": 0.05 + 0.95 * self.uniform(PAIRS),
            "reward": self.uniform(PAIRS, 2),
            "segment_labels": torch.randint(-1, 2, (PAIRS, 2), generator=self.random).float(),
            "tail": self.uniform(PAIRS, 2),
            "uncertainty": self.uniform(PAIRS),
            "advantage": self.normal(PAIRS, 2),
        }
        # Drift has no gradient where policy and reference agree: `inversion_dpo` needs another start.
        begun = 0.01 * self.normal(4, SIZE) if "inversion" in name else torch.zeros(4, SIZE)
        self.adapter = [(0.1 * self.normal(SIZE, 4)).requires_grad_(), begun.requires_grad_()]
        self.optimizer = torch.optim.Adam(self.adapter, lr=3e-4)

    def normal(self, *shape):
        return torch.randn(shape, generator=self.random)

    def uniform(self, *shape):
        return torch.rand(shape, generator=self.random)

    def micro_batch(self):
        """(errors, pairs): those of the policy as it is, on drawn pairs, noise and noise levels."""
        ids = torch.randperm(PAIRS, generator=self.random)[:BATCH]
        sigma, noise = 0.01 + 0.98 * self.uniform(BATCH), self.normal(BATCH, SIZE).repeat(2, 1)
        level, latents = sigma.repeat(2)[:, None], torch.cat([self.latents[0, ids], self.latents[1, ids]])
        noisy = (1 - level) * latents + level * noise
        frozen = noisy @ self.reference
        needs = self.objective.needs
        both = [
            tensor.view(2 * BATCH, *SHAPE)
            for tensor in (frozen + noisy @ self.adapter[0] @ self.adapter[1], noise - latents, frozen)
        ]
        segments = 2 if {"segment_labels", "tail"} & set(needs.pairs) else None
        compared = both if needs.reference else both[:2]
        errors = pair_errors(*compared, segments=segments, cross=needs.cross)
        columns = {name: self.columns[name][ids] for name in needs.pairs if name in self.columns}
        pairs = PairInfo(**columns, timestep=1000 * sigma)
        if "masked" in needs.pairs:
            pairs.masked = pair_errors(*both, mask=self.mask[ids])
        return errors, pairs

    def steps(self, count: int):
        """(loss, the untrained policy's on the same pairs) of each step."""
        for _ in range(count):
            errors, pairs = self.micro_batch()
            output = self.objective(errors, pairs)
            loss = untrained = output.loss.item()
            if errors.ref_chosen is not None:
                untrained = self.objective.untrained(errors, pairs).mean().item()
            yield loss, untrained
            self.optimizer.zero_grad()
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(self.adapter, 1.0)
            self.optimizer.step()


def guarded(name: str, steps: int) -> list[float]:
    """Its losses; none of them is a spike, and one far above the scale still is, at the end as at the start."""
    scale, losses = LossScale(), []
    for step, (loss, untrained) in enumerate(TinyRun(name).steps(steps), start=1):
        assert scale.spike(loss, FACTOR) is None, step
        scale.add(loss, untrained)
        losses.append(loss)
        if step in (FIRST, steps):
            above = (
                1.01
                * FACTOR
                * max(statistics.median(map(abs, losses[-100:])), abs(untrained), *losses[:FIRST])
            )
            assert scale.spike(100 * above, FACTOR) and scale.spike(-100 * above, FACTOR), step
    return losses


@pytest.mark.parametrize("name", TRAINABLE)
def test_no_objective_has_a_false_spike(name):
    guarded(name, 25)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINABLE)
def test_no_objective_has_a_false_spike_in_1000_steps(name):
    guarded(name, 1000)


@pytest.mark.slow
def test_the_running_median_alone_would_have_ended_this_run():
    losses = guarded("dpo", 1000)
    over = [
        step
        for step in range(100, 1000)
        if losses[step] > FACTOR * max(statistics.median(losses[step - 100 : step]), LOWEST * LN2)
    ]
    assert over and min(losses) < 1e-3


@pytest.mark.parametrize("name", [name for name in TRAINABLE if get_spec(name).needs.reference])
def test_the_untrained_loss_is_that_of_a_policy_that_is_the_reference(name):
    """Whatever the policy has learnt, to the bit, without touching the objective's state."""
    run = TinyRun(name)
    list(run.steps(5))
    random = run.random.get_state()
    errors, pairs = run.micro_batch()
    before = dict(run.objective.state)
    found = run.objective.untrained(errors, pairs)
    assert run.objective.state == before and not found.requires_grad
    with torch.no_grad():
        run.adapter[1].zero_()
    run.random.set_state(random)
    fresh, pairs = run.micro_batch()
    assert not fresh.excess_chosen.any()
    run.objective.state.clear()
    run.objective.state.update(before)
    assert torch.equal(found, run.objective(fresh, pairs).per_group.detach())


@pytest.mark.slow
def test_eight_toy_pairs_go_on_for_1000_steps(tmp_path, tiny_wan):
    """As the trainer's defaults have it; the guard before ended such a run where a pair came back to 3.2."""
    toy = {"data": {"toy": {"train_pairs": 8, "held_out_pairs": 1}}}
    train = {"steps": 1000, "checkpoint_every": 1000, "global_batch_groups": 4, "micro_batch_groups": 4}
    config = write_config(tmp_path / "config.yaml", tmp_path / "out", tiny_wan, **toy, train=train)
    run_pgdpo("prepare", config)
    run_pgdpo("train", config)
    losses = [row["loss"] for row in metrics(tmp_path / "out", "dpo")]
    assert len(losses) == 1000 and min(losses) < 0.05
