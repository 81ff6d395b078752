"""Two roads to one loss: from predictions in one op, or errors first and the formula after. The bits are the same."""

from dataclasses import replace
from zlib import crc32

import pytest
import torch

from benchmarks.runs import loss_roads
from pgdpo.objectives import Compared, Objective, PairInfo, available, build_objective
from pgdpo.reference.cached import compared_with, frame_sums
from pgdpo.training.metrics import pair_metrics, watch_gradients
from pgdpo_kernels import set_backend
from tests.training.test_objectives_in_training import prepare_with, train
from tests.worlds import run_pgdpo, stored

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = (6, 1, 5, 3, 4)  # 3 pairs
SEGMENTS = [0, 0, 1, 1, 1]
LABELS = torch.tensor([[1.0, -1.0], [0.0, 1.0], [-1.0, -1.0]], device=DEVICE)

LIMITS = {"logit_cap": 0.05, "chosen_pull": 0.3}

FUSED = {
    "dpo": {},
    "inpo": {},
    "ipo": {},
    "hinge": {},
    "pg_dpo": {"ipr_form": "bt"},
    "pg_dpo hinge": {"ipr_form": "hinge", "ipr_threshold": 0.0},
    "pg_dpo sft": {"ipr_form": "sft", "ars": "none"},
    "pg_dpo switch": {"ipr_form": "switch", "ipr_weight": 0.8, "ars_eps": 1e-3},
    "pg_dpo labelled": {"segments": "labelled"},
    "pg_dpo labelled switch": {"segments": "labelled", "ipr_form": "switch"},
    "dpo limited": LIMITS,
    "hinge limited": LIMITS,
    "pg_dpo limited": LIMITS,
    "pg_dpo labelled limited": {"segments": "labelled", "ipr_form": "sft", **LIMITS},
    "pg_dpo ars none": {"ars": "none", "reward": "external", "ipr_weight": 0.0},
}


def of(name: str) -> Objective:
    return build_objective(name.split()[0], beta=50.0, **FUSED[name])


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("reference", ["live", "cached"])
@pytest.mark.parametrize("name", FUSED)
def test_the_same_bits(name, reference, backend):
    generator = torch.Generator().manual_seed(crc32(f"{name} {reference}".encode()))
    target, reference_pred, step = (torch.randn(SHAPE, generator=generator).to(DEVICE) for _ in range(3))
    scores = torch.rand(4, 3, generator=generator).to(DEVICE)
    plain = PairInfo(segment_labels=LABELS, reward=scores[2:].T)
    weighted = replace(plain, weight=scores[0], timestep_weight=2 * scores[1])
    mask = torch.rand(3, 5, generator=generator).round(decimals=1).to(DEVICE)
    mask[0, :2] = 0  # nothing is left of the segment
    cases = [(torch.bfloat16, mask, weighted), (torch.float32, None, plain)]
    for dtype, masked, pairs in cases[: 1 if backend == "triton" else 2]:  # the interpreter is slow
        predictions = [x.to(dtype) for x in (reference_pred + 0.05 * step, target, reference_pred)]
        with set_backend(backend):
            one = numbers(of(name), pairs, *predictions, reference, masked, fused=True)
            two = numbers(of(name), pairs, *predictions, reference, masked, fused=False)
        shares = [found.pop("gradient_share/rejected") for found in (one, two)]  # one was scaled, one not
        torch.testing.assert_close(*shares, rtol=1e-6, atol=0)
        assert one.keys() == two.keys()
        assert [key for key in one if not torch.equal(one[key], two[key])] == []
        assert one["gradient"].abs().sum() > 0


def numbers(objective, pairs, policy, target, reference_pred, reference, mask, *, fused):
    """All that a step has of a micro-batch, by name, on one of the roads."""
    policy = policy.clone().requires_grad_()
    compared = Compared(policy, target, {"ref_pred": reference_pred}, SEGMENTS, mask)
    if reference == "cached":
        sums = frame_sums(reference_pred, target, mask)
        compared = compared_with(sums, policy, target, segments=SEGMENTS, mask=mask)
    assert objective.fused
    if fused:
        output, errors = objective.from_predictions(compared, pairs)
    else:
        errors = compared.errors()
        output = objective(errors, pairs)
    watch_gradients(errors)
    (output.loss / 3).backward()  # a scale from above that is no power of two
    found = {"scalar": output.loss.detach(), "gradient": policy.grad, "logits": output.logits}
    return found | output.stats | pair_metrics(errors, output)


def test_a_scalar_loss_that_is_not_the_mean_of_its_pairs_is_seen(monkeypatch):
    """The defect that the bits are compared for: a mean in fp32 on one road."""
    monkeypatch.setattr("pgdpo_kernels.mean_loss", lambda losses: losses.sum() / len(losses) * (1 + 2**-23))
    with pytest.raises(AssertionError):
        test_the_same_bits("dpo", "live", "eager")


def test_who_takes_which():
    """What `diffusion_dpo_loss` has goes straight; other modifiers, external rewards and the rest have errors first."""
    assert {name for name in available() if build_objective(name).fused} == {
        "dpo",
        "inpo",
        "ipo",
        "hinge",
        "pg_dpo",
    }
    assert all(of(name).fused for name in FUSED)
    for added in (
        {"safeguard": {"mu": 0.5}},
        {"sft_weight": 0.1},
        {"saturation_skip": {}},
        {"adaptive_clip": {}},
    ):
        assert not build_objective("dpo", **added).fused
        assert not build_objective("dpo", **added, **LIMITS).fused
    assert build_objective("dpo", sft_weight=0.0).fused
    assert build_objective("dpo", timestep_weight="snr", **LIMITS).fused
    assert not build_objective("pg_dpo", reward="external").fused


@pytest.mark.skipif(DEVICE == "cuda", reason="asks Triton's interpreter")
def test_what_the_roads_launch(monkeypatch):
    """Four kernels each; what else a GPU would start is counted by `benchmarks.runs.loss_roads`."""
    monkeypatch.setattr(loss_roads, "ROUNDS", 1)
    monkeypatch.setattr(loss_roads, "CALLS", 1)
    found = loss_roads.figures("dpo")
    one, two = found["in one op"], found["errors first"]
    assert found["equal bits"]
    assert one["kernel launches"] == two["kernel launches"] == 4
    assert one["operators"] <= 4 and two["operators"] >= 3 * one["operators"]


LIMITED = "objective={name: pg_dpo, beta: 500, logit_cap: 0.01, chosen_pull: 0.3, timestep_weight: min_snr}"
RUNS = {
    "live": ("eager", [LIMITED, "train.micro_batch_groups=3", "train.steps=3"]),
    "cached": (
        "eager",
        [
            "objective={name: pg_dpo, beta: 500, segments: labelled, ipr_form: switch}",
            "train.reference=cached",
        ],
    ),
    "split": ("eager", ["objective={name: ipo, beta: 50}", "train.group_batching=split"]),
    "triton": ("triton", ["objective={name: dpo, beta: 500}", "train.steps=2", "train.micro_batch_groups=6"]),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_either_road(config_file, monkeypatch, name):
    """Losses, metrics, and every tensor of the last checkpoint."""
    backend, overrides = RUNS[name]
    columns = {"weight": lambda row: 0.5 + row % 3, "timestep_weight": lambda row: 1.0 + row % 2}
    columns |= {"segment_labels": lambda row: [1, -1]} if name == "cached" else {}
    overrides = [prepare_with(config_file, **columns), "train.global_batch_groups=6", *overrides]
    taken = []
    through = Objective.from_predictions
    monkeypatch.setattr(Objective, "from_predictions", lambda *given: taken.append(1) or through(*given))
    with set_backend(backend):
        if name == "cached":
            run_pgdpo("reference", config_file, *overrides)
        fused = train(config_file, "fused", *overrides)
        assert len(taken) >= len(fused) > 1
        taken.clear()
        monkeypatch.setattr(Objective, "fused", False)
        apart = train(config_file, "apart", *overrides)
    assert not taken
    for one, two in zip(fused, apart, strict=True):
        shares = [row.pop("gradient_share/rejected") for row in (one, two)]
        assert shares[0] == pytest.approx(shares[1], rel=1e-6)
        timed = {key for key in one if "second" in key or "memory" in key} | {"buckets", "mfu"}
        assert {key: one[key] for key in one.keys() - timed} == {key: two[key] for key in two.keys() - timed}
    one, two = (stored(config_file.parent / "out" / run) for run in ("fused", "apart"))
    assert one.keys() == two.keys()
    assert [key for key in one if not torch.equal(one[key], two[key])] == []
