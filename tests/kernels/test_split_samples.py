"""Samples spread over ranks: real ones, over gloo, against float64 on the unsplit tensors."""

import math

import pytest
import torch
import torch.multiprocessing
from split_ranks import INDEX, LABELS, RUNS, SIDES, SLOPES, part_of, run, whole
from torch.nn.functional import softplus


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every rank found, `[rank][world, case, backend]`."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run, (3, str(folder)), nprocs=3)
    return [torch.load(folder / f"{rank}.pt") for rank in range(3)]


def oracle(case):
    """The same numbers of the unsplit tensors, in float64, gradients by autograd."""
    (pred, target, ref), axis, _, mask, options = whole(case)
    leaf = pred.double().requires_grad_()
    weight = torch.ones(2, *pred.shape[1:]) if mask is None else mask.expand(2, *pred.shape[1:])
    place = torch.tensor(INDEX if "segments" in options else [0] * pred.shape[axis])
    view = [1] * pred.dim()
    view[axis] = -1
    known = weight > 0

    def means(x):
        x = torch.where(known, x, 0.0) * weight.double()
        parts = [(x * (place == s).view(view)).flatten(1).sum(1) for s in range(int(place.max()) + 1)]
        return torch.stack(parts, 1)

    count = means(torch.ones_like(leaf[:2]))
    out, residuals = {"count": count}, []
    for side, p, t, r in zip(
        SIDES, leaf.chunk(2), target.double().chunk(2), ref.double().chunk(2), strict=True
    ):
        p = torch.where(known, p, 0.0) + torch.where(known, 0.0, t)  # what is masked out is NaN
        terms = {"policy": (p - t) ** 2, "ref": (r - t) ** 2, "drift": (p - r) ** 2}
        terms["excess"] = terms["policy"] - terms["ref"]
        out |= {f"{name}_{side}": means(term) / count for name, term in terms.items()}
        residuals.append(p - t)
    out["cross"] = means(residuals[0] * residuals[1]) / count
    slopes = SLOPES[..., : count.shape[1]]
    total = (out["excess_rejected"] * slopes[0] + out["drift_chosen"] * slopes[1]).sum()
    share = LABELS.double() if "segments" in options else count / count.sum(1, keepdim=True)
    margin = (share * (out["excess_rejected"] - out["excess_chosen"])).sum(1)
    out["losses"] = softplus(-150.0 * margin)
    out["loss"] = out["losses"].mean()
    out["grad of errors"] = torch.autograd.grad(total, leaf, retain_graph=True)[0]
    out["grad of loss"] = torch.autograd.grad(out["loss"], leaf)[0]
    return {name: value.detach() for name, value in out.items()}


@pytest.mark.parametrize(("case", "backend"), RUNS)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_have_the_errors_and_the_loss_of_the_whole(found, case, world, backend):
    want = oracle(case)
    _, axis, sizes, *_ = whole(case)
    for rank in range(world):
        got = found[rank][world, case, backend]
        for name in set(want) & set(got):
            if name.startswith("grad"):
                part = part_of(want[name], axis, sizes[world], rank)
                assert got[name].shape == part.shape
                torch.testing.assert_close(
                    got[name].double(), part, rtol=2e-5, atol=2e-6 * want[name].abs().max().item()
                )
            else:
                torch.testing.assert_close(got[name].double(), want[name], rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(got["losses of loss"].double(), want["losses"], rtol=2e-5, atol=0)
        for name in ("halves", "losses of halves", "grad of halves"):
            assert torch.equal(got[name], got[name.replace("halves", "loss")])


@pytest.mark.parametrize(("case", "backend"), RUNS)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_agree_to_the_bit(found, case, world, backend):
    first = found[0][world, case, backend]
    for rank in range(1, world):
        other = found[rank][world, case, backend]
        for name in first:
            if not name.startswith("grad") and not (case == "tokens" and "groups" in name):
                assert torch.equal(first[name], other[name]), name


@pytest.mark.parametrize(("case", "backend"), RUNS)
@pytest.mark.parametrize("world", [2, 3])
def test_equal_predictions_have_no_excess(found, case, world, backend):
    got = found[0][world, case, backend]
    assert torch.equal(got["excess of equals"], torch.zeros_like(got["excess of equals"]))
    assert got["loss of equals"].item() == torch.tensor(math.log(2)).item()


@pytest.mark.parametrize(("case", "backend"), [run for run in RUNS if run[0] != "tokens"])
def test_groups_and_cached_errors_do_not_depend_on_the_cut(found, case, backend):
    two, three = (found[0][world, case, backend] for world in (2, 3))
    for name in ("groups", "count of groups", "cached"):
        torch.testing.assert_close(two[name], three[name], rtol=2e-5, atol=1e-6)
    if case == "frames":  # without a mask there, a ragged group's sample has the errors of a pair's
        pairs = torch.cat((two["excess_chosen"], two["excess_rejected"]))
        torch.testing.assert_close(two["groups"], pairs, rtol=1e-6, atol=0)
