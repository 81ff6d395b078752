"""Losses of two parts, and their gradients by the predictions, against the definitions in float64 by autograd.

No line of `pgdpo.objectives` stands in the definitions below; errors come from predictions, as in training.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from pgdpo.diffusion.streams import AUDIO, VIDEO
from pgdpo.messages.errors import InputError
from pgdpo.objectives import Compared, Objective, PairInfo, build_objective
from pgdpo.objectives.parts import Parts
from pgdpo.reference.cached import compared_with, frame_sums
from tests.worlds import eagerly

pytestmark = pytest.mark.quick

BETA = 40.0
SHAPES = {VIDEO: (2, 3, 4, 4), AUDIO: (3, 5, 4)}  # of a sample
RANKS = torch.tensor([[2, 0, 1], [0, 1, 2], [1, 2, 0]])  # of lists of three


@pytest.fixture(autouse=True, scope="module")
def eager():
    """How parts are put together is not about the kernels."""
    with eagerly():
        yield


def dpo(E, r):
    return -logsigmoid(0.5 * BETA * (r[0] - r[1]))


def ipo(E, r):
    return (r[0] - r[1] - 1 / (2 * BETA)) ** 2


def kto(E, r):
    zero = r.detach().mean().clamp_min(0)
    return ((-BETA * (r[0] - zero)).sigmoid() + (BETA * (r[1] - zero)).sigmoid()) / 2


def pg_dpo(E, r):
    kappa, frozen = 0.5 * BETA, r.detach()
    ratio = ((frozen[0] - frozen[1]) / (frozen[1].abs() + 1e-6)).clamp(-10, 10)
    alpha = ratio.sigmoid()
    gate = (kappa * (frozen[0] - alpha * frozen[1]) - 1.0).sigmoid()
    return -logsigmoid(kappa * (r[0] - alpha * r[1])) - gate * logsigmoid(kappa * r[0])


def lpo(E, r):
    order = RANKS.argsort(1).T
    scores = (0.5 * BETA * r).gather(0, order)
    return sum(scores[place:].logsumexp(0) - scores[place] for place in range(len(scores)))


FORMULAS = {"dpo": dpo, "ipo": ipo, "kto": kto, "pg_dpo": pg_dpo, "lpo": lpo}


def loss_of(formula, form, weights, labels, pred, target, ref) -> torch.Tensor:
    """The losses `[B]`, float64, of predictions `[K, B, ...]` by part; `labels`: by part `[B]` of +1, 0, -1."""
    total, sums = 0.0, [0.0, 0.0]
    for part in pred:
        dims = tuple(range(2, pred[part].ndim))
        E = (pred[part] - target[part]).square().mean(dims)  # (K, B)
        r = (ref[part] - target[part]).square().mean(dims) - E
        share = torch.full(E.shape[1:], float(weights[part]), dtype=E.dtype)
        if part in labels:
            E = torch.where(labels[part] < 0, E.flip(0), E)
            r = torch.where(labels[part] < 0, r.flip(0), r)
            share = share * (labels[part] != 0)
        total = total + share * formula(E, r)
        sums = [sums[0] + share * E, sums[1] + share * r]
    return formula(*sums) if form == "inside" else total


def drawn(seed: int, size: int, groups: int) -> tuple[dict, dict, dict]:
    """(predictions, targets, a reference near the predictions), `[K * B, ...]` by part."""
    g = torch.Generator().manual_seed(seed)

    def noise(scale):
        return {
            part: scale * torch.randn(size * groups, *shape, generator=g) for part, shape in SHAPES.items()
        }

    target, away, drift = noise(1.0), noise(0.3), noise(0.1)
    ref = {part: target[part] + away[part] for part in target}
    return {part: ref[part] + drift[part] for part in ref}, target, ref


def compared(pred, target, ref, *, size: int, cached: bool) -> Compared:
    groups = None if size == 2 else size
    if cached:
        return compared_with(frame_sums(ref, target, size=size), pred, target, groups=groups)
    return Compared(pred, target, {"ref_pred": ref}, groups=groups)


def without(parts: dict, name: str) -> dict:
    return {part: value for part, value in parts.items() if part != name}


@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
@pytest.mark.parametrize("form", ["inside", "separate"])
@pytest.mark.parametrize("name", FORMULAS)
@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 2**30),
    weights=st.tuples(st.sampled_from([0.25, 1.0, 3.0]), st.sampled_from([0.0, 0.3, 1.0])),
    labels=st.tuples(*[st.lists(st.sampled_from([1, 0, -1]), min_size=3, max_size=3)] * 2),
    labelled=st.booleans(),
    silent=st.booleans(),
)
def test_loss_and_gradient(name, form, cached, seed, weights, labels, labelled, silent):
    size = 3 if name == "lpo" else 2
    weights = dict(zip(SHAPES, weights, strict=True))
    given = drawn(seed, size, 3)
    pred, target, ref = [without(each, AUDIO) for each in given] if silent else given
    said = {}
    if labelled and name != "lpo":
        said = {part: torch.tensor(each) for part, each in zip(SHAPES, labels, strict=True) if part in pred}
    objective = build_objective(name, beta=BETA, parts={**weights, "form": form})
    leaves = {part: value.clone().requires_grad_() for part, value in pred.items()}
    info = PairInfo(rank=RANKS if size == 3 else None, parts=said or None)
    output = objective(compared(leaves, target, ref, size=size, cached=cached).errors(), info)
    output.loss.backward()

    def doubled(parts):
        return {part: value.double().unflatten(0, (size, -1)) for part, value in parts.items()}

    exact = {part: value.requires_grad_() for part, value in doubled(pred).items()}
    wanted = loss_of(FORMULAS[name], form, weights, said, exact, doubled(target), doubled(ref))
    wanted.mean().backward()
    torch.testing.assert_close(output.per_group.double(), wanted.detach(), rtol=2e-5, atol=2e-6)
    for part, leaf in leaves.items():
        found = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        whole = exact[part].grad.flatten(0, 1)
        torch.testing.assert_close(
            found.double(), whole, rtol=3e-4, atol=1e-5 * max(float(whole.abs().max()), 1e-6)
        )


@pytest.mark.parametrize("form", ["inside", "separate"])
@pytest.mark.parametrize("cached", [False, True], ids=["live", "cached"])
@pytest.mark.parametrize("name", ["dpo", "pg_dpo", "kto"])
def test_a_missing_part_changes_nothing_of_the_other(name, cached, form):
    """Loss, every number and the gradient have the bits of the same pairs of a model of one stream."""
    pred, target, ref = drawn(1, 2, 3)

    def run(objective: Objective, *tensors):
        leaf = tensors[0].clone().requires_grad_()
        as_given = (
            [leaf, *tensors[1:]]
            if objective.parts.form == "alone"
            else [{VIDEO: t} for t in [leaf, *tensors[1:]]]
        )
        output = objective(compared(*as_given, size=2, cached=cached).errors(), PairInfo())
        output.loss.backward()
        return output, leaf.grad

    alone = Objective(**{**vars(build_objective(name, beta=BETA)), "parts": Parts(form="alone")})
    tensors = pred[VIDEO], target[VIDEO], ref[VIDEO]
    one, one_grad = run(alone, *tensors)
    other, other_grad = run(build_objective(name, beta=BETA, parts={AUDIO: 0.3, "form": form}), *tensors)
    assert torch.equal(one.per_group, other.per_group)
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one_grad, other_grad)
    stats = other.parts[VIDEO].stats if form == "separate" else other.stats
    assert stats.keys() == one.stats.keys()
    assert all(torch.equal(stats[key], value) for key, value in one.stats.items())


@pytest.mark.parametrize("form", ["inside", "separate"])
def test_what_is_not_finite_in_a_part_that_is_not_counted_stays_there(form):
    pred, target, ref = drawn(2, 2, 3)
    pred[AUDIO][0] = torch.inf
    objective = build_objective("dpo", beta=BETA, parts={"form": form})
    info = PairInfo(parts={AUDIO: torch.tensor([0, 1, -1])})
    output = objective(compared(pred, target, ref, size=2, cached=False).errors(), info)
    assert output.per_group.isfinite().all()
    none = build_objective("dpo", beta=BETA, parts={AUDIO: 0, "form": form})
    output = none(compared(pred, target, ref, size=2, cached=False).errors(), PairInfo())
    assert output.per_group.isfinite().all()


def test_each_part_keeps_its_own_state():
    """`beta_dpo`'s running mean and spread, and those that it goes on with after a checkpoint."""

    def errors(seed):
        return compared(*drawn(seed, 2, 3), size=2, cached=False).errors()

    make = partial(build_objective, "beta_dpo", beta=BETA, parts={AUDIO: 0.3, "form": "separate"})
    first = make()
    first(errors(1))
    first(errors(2))
    alone = {part: build_objective("beta_dpo", beta=BETA) for part in SHAPES}
    for seed in (1, 2):
        for part, objective in alone.items():
            objective(errors(seed)[part])
    state = first.state_dict()
    assert state == {
        f"{part}/{key}": v for part, each in alone.items() for key, v in each.state_dict().items()
    }
    assert len(set(state.values())) == len(state)
    second = make()
    second.load_state_dict(state)
    assert torch.equal(first(errors(3)).per_group, second(errors(3)).per_group)
    fresh = make()(errors(3)).per_group
    assert not torch.equal(fresh, first(errors(3)).per_group)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sound": 1}, "objective.parts: unknown part `sound`"),
        ({"audio": -1}, "objective.parts.audio is -1; allowed: a number"),
        ({"audio": True}, "objective.parts.audio is True"),
        ({"audio": float("nan")}, "objective.parts.audio is nan"),
        ({"form": "both"}, "objective.parts.form is 'both'; allowed: inside, separate"),
        ({"video": 0, "audio": 0}, "all weights are 0"),
        (0.3, "objective.parts is 0.3; allowed: a mapping of video, audio, form"),
    ],
)
def test_what_is_not_allowed(given, said):
    with pytest.raises(InputError) as error:
        Parts.read(given, (VIDEO, AUDIO))
    assert said in str(error.value)


SEGMENTS = {
    VIDEO: [0, 0, 1],
    AUDIO: [0, 1, 1, 1, 1],
}  # two thirds of the picture in the first one, a fifth of the sound
WEIGHTS = {VIDEO: 1.0, AUDIO: 0.3}


@pytest.mark.parametrize("name", ["dpo", "ipo", "pg_dpo"])
def test_segments_change_nothing_of_a_loss_of_whole_samples(name):
    """Parts that lie otherwise in the segments: a sum weighted by the elements of all would lean to the larger part."""
    pred, target, ref = drawn(3, 2, 4)
    compared_ = Compared(pred, target, {"ref_pred": ref})
    in_segments = Compared(pred, target, {"ref_pred": ref}, SEGMENTS)
    objective = build_objective(name, beta=BETA, parts=WEIGHTS)
    info = PairInfo(parts={AUDIO: torch.tensor([1, -1, 0, 1])})
    whole, cut = (objective(each.errors(), info) for each in (compared_, in_segments))
    torch.testing.assert_close(cut.per_group, whole.per_group, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cut.stats["margin"], whole.stats["margin"], rtol=1e-4, atol=1e-6)


def test_labels_of_segments_meet_the_sum_of_the_parts_in_each():
    pred, target, ref = drawn(4, 2, 3)
    labels = torch.tensor([[1, -1], [0, 1], [1, 1]])
    objective = build_objective("dense_dpo", beta=BETA, parts=WEIGHTS)
    errors = Compared(pred, target, {"ref_pred": ref}, SEGMENTS).errors()
    found = objective(errors, PairInfo(segment_labels=labels)).per_group
    total = torch.zeros(3, dtype=torch.float64)
    for part, segments in SEGMENTS.items():
        away = (ref[part].double() - target[part].double()).square()
        mine = (pred[part].double() - target[part].double()).square()
        frames = (
            (away - mine).movedim(2, 1).flatten(2).mean(2)
        )  # (2 B, frames): what a frame adds to the reward
        margins = frames[:3] - frames[3:]
        for segment in (0, 1):
            own = [place for place, each in enumerate(segments) if each == segment]
            total += WEIGHTS[part] * labels[:, segment] * margins[:, own].mean(1)
    torch.testing.assert_close(found.double(), -logsigmoid(0.5 * BETA * total), rtol=1e-5, atol=1e-6)
