"""`objective.beta: auto`: what is predicted of a step, that looking leaves no trace, and the number is the run's."""

import json

import pytest
import torch
import yaml

from pgdpo.config.read import load_config
from pgdpo.data.visits.loading import load_batches
from pgdpo.messages.errors import InputError
from pgdpo.objectives.registry import REGISTRY
from pgdpo.objectives.spec import AUTO
from tests.worlds import losses, run_pgdpo, stored

AUTO_BETA = "objective={name: dpo, beta: auto}"
FULL = ("model.adapter=null", "train.learning_rate=1e-5")


def settled(run) -> float:
    return yaml.safe_load((run / "config.yaml").read_text())["objective"]["beta"]


@pytest.mark.usefixtures("eager_kernels")
@pytest.mark.parametrize(
    "road",
    [
        pytest.param((), id="lora"),
        pytest.param(FULL, id="full"),
        pytest.param(("train.group_batching=split",), id="split", marks=pytest.mark.slow),
        pytest.param(
            ("train.schedule=cosine", "train.warmup_steps=2"), id="schedule", marks=pytest.mark.slow
        ),
    ],
)
def test_auto_is_the_run_with_its_number(config_file, road):
    out = config_file.parent / "out"
    run_pgdpo("train", config_file, "name=auto", AUTO_BETA, *road)
    beta = settled(out / "auto")
    assert isinstance(beta, float) and beta > 0
    state = json.loads((out / "auto" / "checkpoints" / "step-00000004" / "state.json").read_text())
    assert state["config"]["objective"]["beta"] == beta
    run_pgdpo("train", config_file, "name=typed", f"objective={{name: dpo, beta: {beta!r}}}", *road)
    assert losses(out, "auto") == losses(out, "typed")
    typed = stored(out / "typed")
    assert all(tensor.equal(typed[name]) for name, tensor in stored(out / "auto").items())
    more = () if "train.schedule=cosine" in road else ("train.steps=5",)
    run_pgdpo("train", config_file, "name=auto", AUTO_BETA, *road, *more, "--resume")
    assert settled(out / "auto") == beta and len(losses(out, "auto")) == 4 + len(more)


@pytest.mark.usefixtures("eager_kernels")
def test_a_steps_margin_moves_as_is_predicted(config_file, monkeypatch):
    """On the very batch that a step was taken by, and small enough for its first order."""
    from pgdpo.training.steering import fitting_beta
    from pgdpo.training.trainer import Trainer

    rate = 1e-5
    road = [
        "train.steps=1",
        f"train.learning_rate={rate}",
        "train.global_batch_groups=4",
        "objective.beta=500",
    ]
    run = Trainer(load_config(str(config_file), road))
    batches = list(run.task.batches(range(1)))
    monkeypatch.setattr(fitting_beta, "PAIRS", 4)
    monkeypatch.setattr(run.task, "batches", lambda steps: batches * 2)
    with run.watch:
        fit = fitting_beta.fitting_beta(run.step, run.task)
        before = margins(run, batches)
        run.saves.begin(resume=False, restart=False, step=None, fallback=True, allow_change=[])
        run.step.take(load_batches(run.task.pairs, batches, workers=0))
        change = margins(run, batches) - before
    assert before == 0 and change == pytest.approx(fit.change, rel=0.02)
    assert fit.pairs == 4 and fit.steps == 1
    assert 0.5 * fit.beta * change == pytest.approx(fitting_beta.TARGET, rel=0.02)


@torch.no_grad()
def margins(run, batches) -> float:
    found = []
    for batch in load_batches(run.task.pairs, batches, workers=0):
        sample, compare, pred = run.step._predicted(batch)
        errors = compare(pred, sample.target).errors()
        found.append(errors.excess_rejected - errors.excess_chosen)
    return float(torch.cat(found).double().mean())


def test_ranks_and_shards_find_the_same(config_file, ranks):
    road = [AUTO_BETA, "train.steps=1"]
    ranks.train(config_file, {"alone": road}, ranks=1)
    stages = {f"zero{stage}": [*road, f"train.zero_stage={stage}"] for stage in (0, 1, 2, 3)}
    ranks.train(config_file, stages)
    out = config_file.parent / "out"
    found = [settled(out / name) for name in ("alone", *stages)]
    assert found == pytest.approx([found[0]] * 5, rel=2e-3)


@pytest.mark.usefixtures("eager_kernels")
def test_a_cached_reference_finds_the_same(config_file):
    run_pgdpo("reference", config_file, "train.cached_draws=2")
    run_pgdpo("train", config_file, "name=live", AUTO_BETA, "train.steps=1")
    cached = ("train.reference=cached", "train.cached_draws=2", "train.steps=1")
    run_pgdpo("train", config_file, "name=cached", AUTO_BETA, *cached)
    out = config_file.parent / "out"
    # Its draws are others where a pair is met again.
    assert settled(out / "cached") == pytest.approx(settled(out / "live"), rel=0.5)


def test_only_a_beta_that_scales_the_margin_may_be_auto(config_file):
    with pytest.raises(InputError, match="objective `ipo`: `beta` is 'auto'; allowed: > 0; leave it out"):
        load_config(config_file, ["objective={name: ipo, beta: auto}"])
    takes = [
        name for name, spec in REGISTRY.items() if spec.options.get("beta") and spec.options["beta"].auto
    ]
    assert "dpo" in takes and "pg_dpo" in takes
    for name in takes:
        assert REGISTRY[name].needs.reference and REGISTRY[name].options["beta"].check("", AUTO) == AUTO


@pytest.mark.parametrize(
    "name", [n for n, s in REGISTRY.items() if s.options.get("beta") and s.options["beta"].auto]
)
def test_kappa_is_half_of_beta(name):
    """The chosen's reward alone moves the logit by kappa times it, at the start: PG-DPO's alpha is beside the other."""
    from pgdpo.objectives import PairInfo, build_objective
    from pgdpo_kernels import PairErrors

    fields = {
        key: torch.zeros(4, 1)
        for key in ("excess_chosen", "excess_rejected", "drift_chosen", "drift_rejected")
    }
    fields |= {
        key: torch.ones(4, 1) for key in ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    }
    one = torch.ones(4)
    info = PairInfo(
        probability=one, reward_margin=one, uncertainty=0 * one, gap_frequency=one, timestep=one,
        reward=torch.ones(4, 2),
    )  # fmt: skip
    errors = PairErrors(**fields, count=torch.ones(4, 1), cross=torch.zeros(4, 1))
    objective = build_objective(name, beta=500.0)
    gain = torch.full((4, 1), -1e-4)
    from dataclasses import replace

    moved = replace(errors, excess_chosen=gain, policy_chosen=errors.policy_chosen + gain)
    change = objective(moved, info).logits - objective(errors, info).logits
    sign = -1 if name == "npo" else 1
    assert change.tolist() == pytest.approx([sign * 250 * 1e-4] * 4, rel=1e-3)
