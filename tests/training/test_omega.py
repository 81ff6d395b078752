"""objective.timestep_weight through the trainer, held against float64 at the levels that are drawn."""

import numpy as np
import pytest
import torch

from pgdpo.config.read import load_config
from pgdpo.data.visits.loading import collate
from pgdpo.guards.common_rise import CommonRise
from pgdpo.messages.errors import InputError
from pgdpo.training.held_out.measure import Measure
from pgdpo.training.noising import draw_sample
from pgdpo.training.steering.fitting_beta import fitting_beta
from pgdpo.training.trainer import Trainer
from tests.models.families import KINDS
from tests.models.road import CPU
from tests.training.test_objectives_in_training import prepare_with, train
from tests.training.test_what_counts import batch_of
from tests.worlds import losses, metrics, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")

TABLE = [[0.1, 0.25], [0.6, 2.0], [0.9, 0.1]]
BETA = 500.0
LITTLE = 1.2e-3  # a logit that some of these pairs have, and more of them without omega


def of_a_flow(form, sigma: np.ndarray) -> np.ndarray:
    if form == "min_snr":
        return np.minimum((1 - sigma) ** 2 / sigma**2, 5.0) * sigma**2
    return np.interp(sigma, *np.array(TABLE).T) if form == TABLE else (1 - sigma) ** 2


def double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def moved_run(config_file, *overrides) -> Trainer:
    """A run whose policy has left the reference."""
    run = Trainer(load_config(str(config_file), ["train.steps=1", *overrides]))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in run.policy.engine.module.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return run


def micro_batch(run: Trainer, draw: int = 0, size: int = 4) -> dict:
    return collate([run.task.pairs[index, draw] for index in range(size)])


FORMS = ["flow_dpo", "snr", "min_snr", TABLE]
LOSSES = {  # of kappa, and of both excess errors
    "dpo": lambda k, w, r: np.log1p(np.exp(-k * (r - w))),
    "cdpo": lambda k, w, r: 0.9 * np.log1p(np.exp(-k * (r - w))) + 0.1 * np.log1p(np.exp(k * (r - w))),
    "nca": lambda k, w, r: np.log1p(np.exp(k * w)) + 0.5 * (np.log1p(np.exp(-k * w)) + np.log1p(np.exp(-k * r))),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=["flow_dpo", "snr", "min_snr", "table"])
@pytest.mark.parametrize("name", ["dpo", "cdpo", "nca"])  # the fused road, a logit, and rewards by themselves
def test_a_step_multiplies_beta_by_it(config_file, name, form):
    objective = f"objective={{name: {name}, beta: {BETA}, timestep_weight: {form}}}"
    run = moved_run(config_file, objective)
    assert run.step.objective.fused == (name == "dpo")
    output, errors, _, sigma = run.step.group_loss(micro_batch(run))
    omega = of_a_flow(form, double(sigma))
    chosen, rejected = (double(side)[:, 0] for side in (errors.excess_chosen, errors.excess_rejected))
    kappa = 0.5 * BETA * omega
    np.testing.assert_allclose(double(output.logits), kappa * (rejected - chosen), rtol=2e-5)
    assert np.abs(double(output.logits)).min() > 1e-7 and np.ptp(omega) > 0.05
    np.testing.assert_allclose(double(output.per_group), LOSSES[name](kappa, chosen, rejected), rtol=1e-5)
    np.testing.assert_allclose(double(output.stats["timestep_weight"]), omega, rtol=1e-5)


def test_none_is_no_factor_at_all(config_file):
    """Not one of ones: the kernels then take none, and losses keep their bits."""
    outputs = []
    for added in ("", ", timestep_weight: none"):
        run = moved_run(config_file, f"objective={{name: dpo, beta: 500{added}}}")
        outputs.append(run.step.group_loss(micro_batch(run))[0])
    assert torch.equal(outputs[0].per_group, outputs[1].per_group)
    assert all("timestep_weight" not in output.stats for output in outputs)


def test_the_rows_own_weight_is_a_factor_beside_it_and_that_is_said(config_file, capsys):
    override = prepare_with(config_file, timestep_weight=lambda row: 0.5 + row)
    run = moved_run(config_file, override, f"objective={{name: dpo, beta: {BETA}, timestep_weight: snr}}")
    output, errors, _, sigma = run.step.group_loss(micro_batch(run))
    kappa = 0.5 * BETA * (1 - double(sigma)) ** 2 * (0.5 + np.arange(4))
    margin = double(errors.excess_rejected - errors.excess_chosen)[:, 0]
    np.testing.assert_allclose(double(output.logits), kappa * margin, rtol=2e-5)
    said = "beta is multiplied by objective.timestep_weight and by the rows' own"
    train(config_file, "plain", override, "train.steps=1")
    assert said not in capsys.readouterr().out
    train(config_file, "both", override, "train.steps=1", "objective.timestep_weight=snr")
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("objective", ["dpo", "kto", "simpo", "npo"])
def test_half_of_beta_everywhere_is_half_of_beta(config_file, objective):
    """Whole runs: the held-out figures too, whatever road."""
    runs = {"half": "500", "table": "1000, timestep_weight: [[0, 0.5], [1, 0.5]]"}
    for name, beta in runs.items():
        train(config_file, name, f"objective={{name: {objective}, beta: {beta}}}", "train.steps=3", "evaluate.every=3",
              "evaluate.every_prompts=0")  # fmt: skip
    half, table = (losses(config_file.parent / "out", name) for name in runs)
    assert half == pytest.approx(table, rel=1e-6) and len(set(half)) == 3
    rows = metrics(config_file.parent / "out", "table")
    assert all(row["timestep_weight"] == 0.5 for row in rows)


@pytest.mark.parametrize("objective", ["dpo", "dspo"])
def test_held_out_logits_have_it_at_their_levels(config_file, monkeypatch, objective):
    """Also where no loss can be made of the errors (dspo)."""
    seen, judged = [], Measure._judged

    def noted(self, errors, batch, sample):
        found = judged(self, errors, batch, sample)
        seen.append((sample.sigma, np.array(found)))
        return found

    monkeypatch.setattr(Measure, "_judged", noted)
    monkeypatch.setattr("pgdpo.training.held_out.measure.SATURATED", LITTLE)
    form = f"objective={{name: {objective}, beta: {BETA}, timestep_weight: min_snr}}"
    train(config_file, "watched", form, "train.steps=2", "evaluate.every=2", "evaluate.every_prompts=0")
    told_apart = objective == "dpo"
    for sigma, found in seen:
        chosen, rejected, saturated, losses = found.T
        wanted = 0.5 * BETA * of_a_flow("min_snr", double(sigma)) * (rejected - chosen)
        if objective == "dpo":
            np.testing.assert_allclose(losses, np.log1p(np.exp(-wanted)), rtol=1e-7, atol=1e-7)
        else:
            assert (saturated == (np.abs(wanted) > LITTLE)).all()
            told_apart |= (saturated != (0.5 * BETA * np.abs(rejected - chosen) > LITTLE)).any()
    assert told_apart and len({float(sigma[0]) for sigma, _ in seen}) == 2


@pytest.mark.parametrize("form", ["snr", "min_snr"])
def test_a_v_model_has_that_of_its_schedule(saved, form):
    """CogVideoX: alpha^2 is its scheduler's cumulative product at the step that it is told."""
    kind = KINDS["cogvideox 2b"]
    family = kind.open(saved(kind.save))
    config = load_config("quickstart.yaml", [f"objective.timestep_weight={form}"])
    sample = draw_sample(batch_of(family, 6), config, family, CPU)
    steps = np.floor(1000 * double(sample.sigma)).astype(int)
    signal = family.load_scheduler().alphas_cumprod.double().numpy()[steps]
    clip = signal / (1 - signal) if form == "snr" else np.minimum(signal / (1 - signal), 5.0)
    np.testing.assert_allclose(double(sample.timestep_weight), clip * (1 - signal), rtol=1e-4)


def test_a_cached_reference_has_it_too_and_its_key_does_not(config_file):
    cached = ("train.reference=cached", "train.cached_draws=2", "train.steps=3")
    run_pgdpo("reference", config_file, "train.cached_draws=2")
    weighted = "objective.timestep_weight=flow_dpo"
    for name, road in (("live", cached[2:]), ("cached", cached)):
        train(config_file, name, weighted, *road)
    live, found = (losses(config_file.parent / "out", name) for name in ("live", "cached"))
    assert live[0] == found[0] and found[1:] == pytest.approx(live[1:], rel=1e-5)


def test_a_resumed_run_keeps_it(config_file):
    train(config_file, "run", "objective.timestep_weight=[[0, 1], [1, 0.5]]", "train.steps=2")
    resumed = ("train", config_file, "name=run", "train.steps=4", "--resume")
    for other in ("snr", "[[0, 1], [1, 0.6]]"):
        with pytest.raises(
            InputError, match="its objective.timestep_weight is .*0.5.*a run stays what it was trained as"
        ):
            run_pgdpo(*resumed, f"objective.timestep_weight={other}")
    run_pgdpo(*resumed, "objective.timestep_weight=[[0, 1], [1, 0.5]]")
    assert len(losses(config_file.parent / "out", "run")) == 4


def test_auto_beta_is_for_the_weighted_margin(config_file):
    """Half of beta everywhere asks for twice the beta."""
    fits = []
    for added in ("", ", timestep_weight: [[0, 0.5], [1, 0.5]]"):
        run = Trainer(load_config(str(config_file), [f"objective={{name: dpo, beta: 500{added}}}"]))
        with run.watch:
            fits.append(fitting_beta(run.step, run.task).beta)
    assert fits[1] == pytest.approx(2 * fits[0], rel=1e-3)


def test_common_rise_explains_logits_by_it(config_file, tmp_path):
    """What PG-DPO's silent failure is told by: kappa, omega in it, times the margin."""
    objective = f"objective={{name: pg_dpo, beta: {BETA}, timestep_weight: min_snr}}"
    run = moved_run(config_file, objective)
    output, errors, _, sigma = run.step.group_loss(micro_batch(run))
    watch = CommonRise(run.step.objective, tmp_path, None)
    watch.add(output, errors)
    margin = double(errors.excess_rejected - errors.excess_chosen)[:, 0]
    explained = 0.5 * BETA * of_a_flow("min_snr", double(sigma)) * margin
    np.testing.assert_allclose(watch._step[2], explained.sum(), rtol=1e-5)
