"""Groups through the real trainer: losses against float64 on whole lists, and every road to the same ones."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.visits.loading import collate
from pgdpo.objectives.pairing import places_of
from pgdpo.training.noising import draw_sample
from pgdpo.training.step import Step
from pgdpo_kernels import noise_pair
from tests.training.list_worlds import trained_on
from tests.worlds import losses, metrics, run_pgdpo, stored

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")
BETA = 2000


def train(config, name, *overrides, options=()) -> list[dict]:
    run_pgdpo("train", config, *options, f"name={name}", *overrides)
    return metrics(config.parent / "out", name)


# --- float64 on whole lists -------------------------------------------------------------------------------------------


def nll(z):
    return np.log1p(np.exp(-z))


def lpo(x):
    return sum(np.log(sum(np.exp(x.s[j]) for j in x.all if x.rank[j] >= x.rank[i])) - x.s[i] for i in x.all)


def rank_dpo(x):
    place = [sum(other > own for other in x.score) for own in x.score]

    def loss(i, j):
        gain = abs(2 ** x.score[i] - 2 ** x.score[j])
        return gain * abs(1 / np.log(2 + place[i]) - 1 / np.log(2 + place[j])) * nll(x.s[i] - x.s[j])

    return sum(loss(i, j) for i in x.all for j in x.all if x.score[i] > x.score[j])


def gdro(x):
    loss = x.E[np.argmax(x.score)]
    for own in x.score:
        rest = x.score <= own
        wanted = np.exp(x.score[rest] / 0.05)
        loss += np.log(np.exp(x.s[rest]).sum()) - (wanted * x.s[rest]).sum() / wanted.sum()
    return loss


def adpo(x):
    wanted, found = np.exp(x.score), np.exp(x.s)
    return -(wanted / wanted.sum() * np.log(found / found.sum())).sum()


def dgpo(x):
    advantage = (x.score - x.score.mean()) / x.score.std()
    pull = (advantage * 2 * -x.s).mean()
    return (advantage * x.E).mean() / (1 + np.exp(-pull))


def kto(x):
    z = x.label * 2 * (x.s - x.zero)
    return (1 - 1 / (1 + np.exp(-z))).mean()


def dpo(x):
    return nll(x.s[np.argmin(x.rank)] - x.s[np.argmax(x.rank)])


def dpo_all(x):
    return np.mean([nll(x.s[i] - x.s[j]) for i in x.all for j in x.all if x.rank[i] < x.rank[j]])


def dpo_adjacent(x):
    order = np.argsort(x.rank)
    return np.mean([nll(x.s[i] - x.s[j]) for i, j in zip(order, order[1:], strict=False)])


FORMULAS = {
    "lpo": (lpo, "{name: lpo}"),
    "rank_dpo": (rank_dpo, "{name: rank_dpo}"),
    "gdro": (gdro, "{name: gdro}"),
    "adpo": (adpo, "{name: adpo, target: reward}"),
    "dgpo": (dgpo, "{name: dgpo}"),
    "kto": (kto, "{name: kto}"),
    "dpo": (dpo, "{name: dpo}"),
    "dpo all": (dpo_all, "{name: dpo, pairing: all}"),
    "dpo adjacent": (dpo_adjacent, "{name: dpo, pairing: adjacent}"),
}


def objective(case: str, beta: float = BETA) -> str:
    return f"objective={FORMULAS[case][1][:-1]}, beta: {beta}}}"


@pytest.fixture
def predicted(monkeypatch):
    """Of each micro-batch that a run takes: ids, and each list's float64 errors of policy and reference on its draws.

    Each clip is predicted by itself, from the prepared clip and the prompt of its row.
    """
    found = []
    through = Step.group_loss

    def noted(self, batch):
        if torch.is_grad_enabled():
            found.append(of_lists(self, batch))
        return through(self, batch)

    monkeypatch.setattr(Step, "group_loss", noted)
    return found


def of_lists(step, batch):
    family, model, device = step.policy.family, step.policy.engine.module, step.policy.ranks.device
    sample = draw_sample(batch, step.config, family, device)
    data = PreparedPairs(step.config.prepared_dir / "train")
    index = {row["id"]: place for place, row in enumerate(data.rows)}
    found = []
    for group, name in enumerate(batch["ids"]):
        item = data[index[name], int(batch["draw"][group])]
        sigma, errors = sample.sigma[group : group + 1], []
        text = {key: value[None].to(device) for key, value in item["conditioning"].items()}
        noise = sample.target[group] + sample.latents[group]  # of the list's first clip
        for clip in item["samples"]:
            noisy = ((1 - sigma) * clip + sigma * noise)[None]
            with torch.no_grad():
                ours = family.predict(model, noisy, sigma, text)
                model.disable_adapters()
                theirs = family.predict(model, noisy, sigma, text)
                model.enable_adapters()
            target = (noise - clip).double()
            errors.append([float((pred.double() - target).square().mean()) for pred in (ours, theirs)])
        found.append(np.array(errors).T)
    return SimpleNamespace(ids=batch["ids"], errors=found)


def loss_of(case, micro, rows):
    """Mean over a micro-batch's lists, float64."""
    scores = [-BETA / 2 * (policy - reference) for policy, reference in micro.errors]
    zero = max(0.0, np.concatenate(scores).mean())
    found = []
    for name, s, (policy, _) in zip(micro.ids, scores, micro.errors, strict=True):
        samples = rows[name]["samples"]
        said = {
            key: np.array([one[key] for one in samples])
            for key in ("rank", "score", "label")
            if key in samples[0]
        }
        x = SimpleNamespace(s=s, E=policy, zero=zero, all=range(len(samples)), **said)
        found.append(FORMULAS[case][0](x))
    return np.mean(found)


def check(config, predicted, case):
    """Three steps' losses: the first to a fp32 number's precision, the others to what clips in batches are rounded by,
    times beta."""
    found = train(config, case.replace(" ", "-"), objective(case), "train.steps=3")
    assert len(predicted) == 2 * len(found) == 6
    assert {errors.shape for micro in predicted for errors in micro.errors} == {(2, 2), (2, 3), (2, 4)}
    assert found[0]["margin"] == 0.0 != found[1]["margin"]
    rows = trained_on(config)
    for step, row in enumerate(found):
        wanted = np.mean([loss_of(case, micro, rows) for micro in predicted[2 * step : 2 * step + 2]])
        assert row["loss"] == pytest.approx(wanted, rel=5e-5 if step else 1e-6)


def slow_but(*telling, of):
    return [pytest.param(case, marks=[] if case in telling else pytest.mark.slow) for case in of]


@pytest.mark.parametrize("case", slow_but("lpo", "dgpo", "kto", "dpo all", of=FORMULAS))
def test_losses_are_those_of_float64_on_whole_lists(ragged, predicted, case):
    check(ragged, predicted, case)


def list_by_list(items):
    batch = collate(items)
    batch["latents"] = batch["latents"].unflatten(0, (-1, len(items))).transpose(0, 1).flatten(0, 1)
    return batch


def noise_of_each(latents, level, *, pair_ids, draw, **options):
    size = len(latents) // len(level)
    ids = pair_ids.repeat(size) + torch.arange(size).repeat_interleave(len(level))
    return noise_pair(latents, level.repeat(size), pair_ids=ids, draw=draw.repeat(size), **options)


DEFECTS = {
    "list by list": ("pgdpo.data.visits.loading.collate", list_by_list),
    "a noise of each clip": ("pgdpo.training.noising.noise_pair", noise_of_each),
    "others' timesteps": (
        "pgdpo.training.noising.Sample.each",
        property(lambda self: self.sigma.repeat_interleave(len(self.latents) // len(self.sigma))),
    ),
    "the worst is best": (
        "pgdpo.objectives.batch.places_of",
        lambda info, groups, size, like: size - 1 - places_of(info, groups, size, like),
    ),
}


@pytest.mark.parametrize("defect", slow_but("list by list", of=DEFECTS))
def test_that_check_sees(ragged, predicted, monkeypatch, defect):
    monkeypatch.setattr(*DEFECTS[defect])
    with pytest.raises(AssertionError):
        check(ragged, predicted, "lpo")


def test_a_first_step_has_no_margin_and_the_loss_of_a_shuffled_list(lists):
    first, *_ = train(lists, "first", objective("lpo"), "train.steps=1")
    assert first["margin"] == first["reward/chosen"] == first["reward/rejected"] == 0.0
    assert first["loss"] == pytest.approx(math.log(math.factorial(4)), rel=1e-6)
    assert first["implicit_accuracy"] == 0.5


# --- every road to the same losses ------------------------------------------------------------------------------------

# beta multiplies the rounding of predictions, which differs between batch sizes.
STEADY = (objective("lpo", 50), "train.steps=4", "train.learning_rate=1e-3")
SPLIT = "train.group_batching=split"


def assert_alike(config, name, other, rel=1e-5):
    """Losses, and the weights in the end."""
    out = config.parent / "out"
    assert losses(out, name) == pytest.approx(losses(out, other), rel=rel) and len(losses(out, name)) == 4
    ours, theirs = stored(out / name), stored(out / other)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[key], rtol=rel, atol=1e-5)


def test_ranks_with_lists_of_other_sizes_have_the_losses_of_one(ragged, ranks):
    """They must not wait for each other in vain either: in pieces, ZeRO-3 gathers weights equally often on both."""
    ranks.train(ragged, {"one": STEADY}, ranks=1)
    two = {"two": STEADY, "two-split": [*STEADY, SPLIT], "shards": [*STEADY, SPLIT, "train.zero_stage=3"]}
    ranks.train(ragged, two, timeout=200)
    for name in two:
        assert_alike(ragged, name, "one")
    ours, theirs = (metrics(ragged.parent / "out", name)[-1] for name in ("two", "one"))
    assert {name: ours[name] for name in FIGURES} == pytest.approx(
        {name: theirs[name] for name in FIGURES}, rel=1e-4
    )


FIGURES = ("implicit_accuracy", "displacement", "margin", "error/chosen", "error/rejected", "gradient_norm")


@pytest.mark.slow
def test_more_roads_to_them(ragged, ranks):
    one = {"one": STEADY, "split": [*STEADY, SPLIT], "zero3": [*STEADY, "train.zero_stage=3"]}
    ranks.train(ragged, one | {"zero2-split": [*STEADY, SPLIT, "train.zero_stage=2"]}, ranks=1)
    ranks.train(ragged, {"two-zero3": [*STEADY, "train.zero_stage=3"]}, timeout=200)
    for name in ("split", "zero3", "zero2-split", "two-zero3"):
        assert_alike(ragged, name, "one")


CACHED = (*STEADY, "train.cached_draws=2")


def test_a_cached_reference_is_a_live_one(ragged):
    run_pgdpo("reference", ragged, *CACHED)
    found = train(ragged, "cached", *CACHED, "train.reference=cached")
    assert found[0]["margin"] == 0.0 != found[1]["margin"]
    train(ragged, "live", *STEADY)
    assert_alike(ragged, "cached", "live", rel=1e-6)


@pytest.mark.slow
def test_errors_of_two_ranks_with_lists_of_other_sizes_serve_one(ragged, ranks):
    ranks.run(["reference", ragged, *CACHED, SPLIT])
    ranks.train(ragged, {"cached": [*CACHED, SPLIT, "train.reference=cached"], "live": STEADY}, ranks=1)
    assert metrics(ragged.parent / "out", "cached")[0]["margin"] == 0.0
    assert_alike(ragged, "cached", "live")


def test_a_resumed_run_goes_on_to_the_bit(ragged):
    train(ragged, "whole", *STEADY)
    train(ragged, "stopped", *STEADY, "train.steps=2")
    train(ragged, "stopped", *STEADY, options=["--resume"])
    out = ragged.parent / "out"
    assert losses(out, "stopped") == losses(out, "whole")
    ours, theirs = stored(out / "stopped"), stored(out / "whole")
    assert ours.keys() == theirs.keys() and all(tensor.equal(theirs[key]) for key, tensor in ours.items())
