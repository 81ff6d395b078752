"""What is logged of samples of two parts: each part's own figures, as its own label has it, and the joint ones."""

import math

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pgdpo.diffusion.streams import AUDIO, VIDEO
from pgdpo.objectives import Compared, PairInfo, build_objective
from pgdpo.training.held_out.figures import Numbers
from pgdpo.training.metrics import StepMetrics, sample_metrics, watch_gradients
from pgdpo_kernels import PairErrors
from tests.worlds import eagerly

pytestmark = pytest.mark.quick

SHAPES = {VIDEO: (2, 3, 4, 4), AUDIO: (3, 5, 4)}
WEIGHTS = {VIDEO: 1.0, AUDIO: 0.3}
LABELS = {VIDEO: [1, 1, 1, -1], AUDIO: [1, -1, 0, 1]}
PAIRS = 4


@pytest.fixture(autouse=True, scope="module")
def eager():
    """Sums of what the kernels give are not about them."""
    with eagerly():
        yield


def micro_batch(form="inside", name="dpo", *, labelled=True, parts=tuple(SHAPES), weights=WEIGHTS, seed=0):
    """(numbers, which pairs have them, predictions with their gradients, targets, references)."""
    g = torch.Generator().manual_seed(seed)
    draw = {
        part: [scale * torch.randn(2 * PAIRS, *shape, generator=g) for scale in (1.0, 0.3, 0.1)]
        for part, shape in SHAPES.items()
    }
    target = {part: draw[part][0] for part in parts}
    ref = {part: draw[part][0] + draw[part][1] for part in parts}
    pred = {part: (ref[part] + draw[part][2]).requires_grad_() for part in parts}
    objective = build_objective(name, beta=40.0, parts={**weights, "form": form})
    said = {part: torch.tensor(LABELS[part]) for part in parts} if labelled else None
    info, errors = PairInfo(parts=said), Compared(pred, target, {"ref_pred": ref}).errors()
    output = objective(errors, info)
    watch_gradients(errors)
    output.loss.backward()
    metrics, present = sample_metrics(errors, objective.joint(errors, info), output, info, tuple(SHAPES))
    return metrics, present, pred, target, ref


def excesses(pred, target, ref, part):
    """Of the samples in the order of their files, float64 `[2, PAIRS]`."""
    error = [
        (each[part].detach().double() - target[part].double()).square().flatten(1).mean(1)
        for each in (pred, ref)
    ]
    return (error[0] - error[1]).reshape(2, PAIRS)


@pytest.mark.parametrize("form", ["inside", "separate"])
@pytest.mark.parametrize("labelled", [True, False])
def test_figures_of_each_part(form, labelled):
    metrics, present, *tensors = micro_batch(form, labelled=labelled)
    total = 0.0
    for part in SHAPES:
        labels = np.array(LABELS[part] if labelled else [1] * PAIRS)
        chosen, rejected = excesses(*tensors, part)
        chosen, rejected = np.where(labels < 0, (rejected, chosen), (chosen, rejected))
        found = {key.removeprefix(f"parts/{part}/"): value for key, value in metrics.items() if part in key}
        wanted = {
            "margin": rejected - chosen,
            "excess/chosen": chosen,
            "reward/rejected": -rejected,
            "displacement": chosen > 0,
            "implicit_accuracy": rejected > chosen,
        }
        for key, value in wanted.items():
            np.testing.assert_allclose(
                found[key].double(), value, rtol=2e-5, atol=1e-7, err_msg=f"{part} {key}"
            )
            assert present[f"parts/{part}/{key}"].tolist() == (labels != 0).tolist()
        total = total + WEIGHTS[part] * (labels != 0) * (rejected - chosen)
        assert ("loss" in found) == ("saturation" in found) == (form == "separate")
    np.testing.assert_allclose(metrics["margin"].double(), total, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("form", ["inside", "separate"])
@pytest.mark.parametrize("name", ["dpo", "pg_dpo", "kto"])
def test_shares_of_the_gradient(form, name):
    """Of the norms of the gradients that the predictions have: the rejected half's, of each part and of both, and each
    part's of all."""
    metrics, present, pred, *_ = micro_batch(form, name)
    norms = {}  # [2, PAIRS] of what its own label prefers, and of the other
    for part, leaf in pred.items():
        own = leaf.grad.double().flatten(1).norm(dim=1).reshape(2, PAIRS).numpy()
        norms[part] = np.where(np.array(LABELS[part]) < 0, own[::-1], own)
    sides = np.sqrt(sum(np.square(each) for each in norms.values()))
    np.testing.assert_allclose(metrics["gradient_share/rejected"], sides[1] / sides.sum(0), rtol=1e-4)
    whole = {part: np.sqrt(np.square(each).sum(0)) for part, each in norms.items()}
    for part, each in norms.items():
        counts = np.array(LABELS[part]) != 0
        share = metrics[f"parts/{part}/gradient_share/rejected"].numpy()
        np.testing.assert_allclose(share[counts], each[1][counts] / each.sum(0)[counts], rtol=1e-4)
        share = metrics[f"parts/{part}/gradient_share"]
        np.testing.assert_allclose(share, whole[part] / sum(whole.values()), rtol=1e-4, atol=1e-12)
        assert present[f"parts/{part}/gradient_share"].tolist() == [True, True, False, True]


@pytest.mark.parametrize("form", ["inside", "separate"])
def test_names_are_the_same_whatever_a_micro_batch_lacks(form):
    """Ranks send their sums to each other: a silent micro-batch on one stands beside a sounding one on another."""
    whole, _, *_ = micro_batch(form)
    plain, _, *_ = micro_batch(form, labelled=False)
    for weights in ({VIDEO: 1.0, AUDIO: 0.0}, WEIGHTS):
        silent, present, *_ = micro_batch(form, parts=(VIDEO,), labelled=False, weights=weights)
        assert list(silent) == list(whole) == list(plain)
        assert list(micro_batch(form, weights=weights)[0]) == list(whole)
        assert not any(has.any() for key, has in present.items() if AUDIO in key)
        assert not any(has.any() for key, has in present.items() if key.endswith("gradient_share"))
        assert all(value.shape == (PAIRS,) for value in silent.values())


def test_a_part_of_weight_0_has_none_of_the_gradient():
    metrics, *_ = micro_batch(weights={VIDEO: 1.0, AUDIO: 0.0})
    assert metrics["parts/audio/gradient_share"].tolist() == [0] * PAIRS
    assert metrics["parts/video/gradient_share"].tolist() == pytest.approx([1] * PAIRS)


@pytest.mark.parametrize("form", ["inside", "separate"])
def test_numbers_of_the_picture_are_those_without_sound_to_the_bit(form):
    """`metrics` of silent pairs: of the joint and of the picture alike."""
    metrics, *_ = micro_batch(form, parts=(VIDEO,), labelled=False)
    for key in ("margin", "displacement", "gradient_share/rejected", "excess/rejected", "error/chosen"):
        assert torch.equal(metrics[key], metrics[f"parts/video/{key}"]), key


def test_a_steps_means_are_of_the_pairs_that_have_the_part(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda group: 1)
    monkeypatch.setattr(dist, "all_gather", lambda found, own, group: found[0].copy_(own))
    step = StepMetrics(torch.device("cpu"), None, sources=("a",))
    kept = {part: [] for part in SHAPES}
    for seed, parts in enumerate([(VIDEO,), (VIDEO, AUDIO), (VIDEO,)]):
        metrics, present, *_ = micro_batch(parts=parts, labelled=seed == 1, seed=seed)
        rows = [{"manifest_name": "a"}] * PAIRS
        step.add(metrics, present, torch.full((PAIRS,), 0.3), torch.ones(PAIRS, dtype=torch.bool), rows)
        for part in parts:
            counts = np.array(LABELS[part] if seed == 1 else [1] * PAIRS) != 0
            kept[part] += metrics[f"parts/{part}/margin"][torch.tensor(counts)].tolist()
    found = step.reduce()
    for part, margins in kept.items():
        for row in (found, found["buckets"]["sigma_0.25_0.50"], found["sources"]["a"]):
            assert row["parts"][part]["margin"] == pytest.approx(np.mean(margins))
    assert not any(key.startswith("parts/") for key in found)
    silent = StepMetrics(torch.device("cpu"), None)
    metrics, present, *_ = micro_batch(parts=(VIDEO,), labelled=False)
    silent.add(metrics, present, torch.full((PAIRS,), 0.3), torch.ones(PAIRS, dtype=torch.bool), [{}] * PAIRS)
    assert all(map(math.isnan, silent.reduce()["parts"][AUDIO].values()))


def test_held_out_figures_are_of_the_pairs_that_have_the_part():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 5, 4))
    own = rng.normal(size=(2, 3, 4))
    flat = np.zeros((5, 4))
    none = np.zeros((2, 0, 4))
    parts = {VIDEO: (chosen, rejected), AUDIO: (own[0], own[1])}
    found = Numbers([0.1, 0.1, 0.6, 0.6], chosen, rejected, flat, None, parts).figures()
    assert found["parts"][VIDEO] == {key: found[key] for key in found["parts"][VIDEO]}
    for levels, row in ((slice(None), found), (slice(2), found["buckets"]["sigma_0.00_0.25"])):
        audio, means = row["parts"][AUDIO], own[:, :, levels].mean(2)
        assert audio["pairs"] == 3
        assert audio["margin"]["value"] == pytest.approx((means[1] - means[0]).mean())
        assert audio["displacement"]["value"] == pytest.approx((means[0] > 0).mean())
        assert audio["margin"]["low"] < audio["margin"]["value"] < audio["margin"]["high"]
    silent = Numbers([0.1] * 4, chosen, rejected, flat, None, {AUDIO: (none[0], none[1])}).figures()
    assert "parts" not in silent


def test_saturation_is_of_the_sigmoids_that_there_are():
    """Two parts with one each: their logits' sum is large where none is, and nothing where both are."""
    far = {
        VIDEO: torch.tensor([[0.3], [0.3], [0.6], [0.6]]),
        AUDIO: torch.tensor([[0.3], [-0.3], [-0.6], [0.1]]),
    }
    zero = torch.zeros(PAIRS, 1)
    errors = {
        part: PairErrors(zero, zero, zero, zero, excess_chosen=-margin, excess_rejected=zero, count=zero + 1)
        for part, margin in far.items()
    }
    info = PairInfo(parts={AUDIO: torch.tensor([1, 1, 1, 0])})
    for form, wanted in (("separate", [0, 0, 1, 1]), ("inside", [1, 0, 0, 1])):
        objective = build_objective("dpo", beta=32.0, parts={"form": form})  # logits of 4.8 and 9.6
        found, _ = sample_metrics(
            errors, objective.joint(errors, info), objective(errors, info), info, tuple(far)
        )
        assert found["saturation"].tolist() == wanted
    unweighted = build_objective("dpo", beta=32.0, parts={"video": 0, "form": "separate"})
    assert unweighted(errors, PairInfo()).flat.tolist() == [0, 0, 1, 0]
