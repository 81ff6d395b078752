"""Rows of ranks that have unequally many: all of them on every rank, and each gradient back where its row is."""

from contextlib import nullcontext
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from pgdpo.objectives.gather import all_gather

COUNTS = [(3, 1), (2, 2), (0, 2), (1, 5)]  # rows of the two ranks


def rows_of(rank: int, count: int) -> torch.Tensor:
    return torch.arange(2.0 * count, dtype=torch.float64).reshape(count, 2) + 100 * rank


def weights_of(rank: int, count: int) -> torch.Tensor:
    """Of all rows in a rank's loss."""
    return torch.arange(1.0, 2 * count + 1, dtype=torch.float64).reshape(count, 2).cos() + rank


def worker(folder: str, alone: bool) -> None:
    """`alone`: the defect, gradients that are not summed over the ranks."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = []
    for counts in COUNTS:
        own = rows_of(rank, counts[rank]).requires_grad_()
        everyone, first = all_gather(own, dist.group.WORLD)
        loss = (weights_of(rank, len(everyone)) * everyone.square()).sum()
        with mock.patch.object(dist, "all_reduce", lambda *_, **__: None) if alone else nullcontext():
            loss.backward()
        found.append((everyone.detach(), first, own.grad))
    torch.save(found, f"{folder}/{rank}.pt")


def check(folder):
    for rank in (0, 1):
        found = torch.load(folder / f"{rank}.pt", weights_only=True)
        for (everyone, first, grad), counts in zip(found, COUNTS, strict=True):
            wanted = torch.cat([rows_of(other, counts[other]) for other in (0, 1)])
            assert torch.equal(everyone, wanted) and first == (counts[0] if rank else 0)
            # Both ranks' losses have this rank's rows in them.
            weights = weights_of(0, len(wanted)) + weights_of(1, len(wanted))
            own = slice(first, first + counts[rank])
            torch.testing.assert_close(grad, (2 * weights * wanted)[own], rtol=1e-12, atol=0)


@pytest.mark.parametrize("alone", [False, True], ids=["as it is", "gradients that are not summed"])
def test_values_and_gradients_on_two_ranks(tmp_path, ranks, alone):
    ranks.call(worker, str(tmp_path), alone)
    with pytest.raises(AssertionError) if alone else nullcontext():
        check(tmp_path)
