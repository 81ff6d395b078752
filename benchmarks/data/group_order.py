"""Lists that are cut, drawn apart, left out or visited twice in an epoch of 25,000 on several numbers of ranks:

    python -m benchmarks.data.group_order [--lists 25000]

-> results/group_order.json: how many of each, none if all is well. What a run reads is walked step by step, batches as
they are collated, for every rank, and where a run is resumed, from there with another number of ranks; a clip is a
number in the place of its latents, by which it is known again. `tests/data/test_group_order.py` has this seen to fail.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from pgdpo.config import DiffusionConfig
from pgdpo.data.prepared import PreparedPairs, pair_hash
from pgdpo.data.visits.batches import StepBatches
from pgdpo.data.visits.loading import collate
from pgdpo.diffusion.draws import sigmas
from pgdpo.evaluation.evaluate import machine, versions
from pgdpo.files.atomic import write_json

from ..report import RESULTS

FILE = RESULTS / "group_order.json"
LISTS = 25_000
MICRO_BATCH = 8  # lists
MICRO_BATCHES = 6  # of a step, over all ranks: 1, 2 or 3
SEED = 0
ROADS = {
    "1": (1, 1),
    "2": (2, 2),
    "3": (3, 3),
    "2, then 3": (2, 3),
    "3, then 1": (3, 1),
}  # ranks before, after
SIZES = ((4, 16, 16), (8, 16, 16))  # clips of every third list are longer
EPOCHS = 1.1  # the first, and so much of the next that the rests come which filled no micro-batch
DRAWS = DiffusionConfig()


class Lists(PreparedPairs):
    """Prepared lists of `sizes` clips, of which there is an index and no file."""

    def __init__(self, sizes: Sequence[int]) -> None:
        shards = [{"size": list(size), "latent_shape": [1, 1, 1, 1]} for size in SIZES]
        self.index = {"sizes": [list(size) for size in SIZES], "shards": shards}
        self.rows = [
            {"id": f"list {number}", "shard": int(number % 3 == 0), "samples": [{}] * size}
            for number, size in enumerate(sizes)
        ]
        self.stages = self.shares = None
        self.ids = np.array([pair_hash(row["id"]) for row in self.rows])
        self.first = np.concatenate([[0], np.cumsum(sizes)])  # clip of each list, and how many there are
        self.clips = torch.arange(float(self.first[-1])).reshape(-1, 1, 1, 1, 1).unbind(0)

    def __getitem__(self, item: tuple[int, int]) -> dict:
        index, draw = item
        row, samples = self.rows[index], self.clips[self.first[index] : self.first[index + 1]]
        known = {
            "id": row["id"],
            "pair_id": int(self.ids[index]),
            "draw": draw,
            "row": row,
            "samples": samples,
        }
        return known | {"damage": None, "mask": None, "conditioning": {}, "captions": {}}


class Walk:
    """What the ranks of a run read in its first `epochs`."""

    def __init__(
        self, data: Lists, before: int, after: int, *, resumed: int = 0, epochs: float = EPOCHS
    ) -> None:
        """`before`: ranks up to the step `resumed`; `after`: from there."""
        self._data = data
        self.steps = math.ceil(epochs * len(data) / (MICRO_BATCH * MICRO_BATCHES))
        self.seen: list[set] = [set() for _ in range(self.steps)]  # of each step (list, draw, key, sigma)s
        self.visits = np.zeros((2, len(data.clips)), int)  # of each clip in the epoch, and later
        self.cut = self.apart = 0
        for ranks, steps in ((before, range(resumed)), (after, range(resumed, self.steps))):
            for rank in range(ranks):
                self._follow(rank, ranks, steps)

    def _follow(self, rank: int, ranks: int, steps: range) -> None:
        order = self._data.order(micro_batch=MICRO_BATCH, seed=SEED)
        own = StepBatches(order, micro_batches=MICRO_BATCHES, rank=rank, world=ranks, steps=steps)
        for number, items in enumerate(own):
            self._see(collate([self._data[item] for item in items]), steps[number * ranks // MICRO_BATCHES])

    def _see(self, batch: dict, step: int) -> None:
        clips, first = batch["latents"].flatten().long().numpy(), self._data.first
        lists = np.searchsorted(first, clips, side="right") - 1
        rows = np.arange(len(clips))
        member, column = np.divmod(rows, MICRO_BATCH)  # member k of list g is row k * B + g
        whole = (lists == lists[column]) & (clips - first[lists] == member)
        complete = first[lists + 1] - first[lists] == len(clips) / MICRO_BATCH
        self.cut += MICRO_BATCH - int((whole & complete).reshape(-1, MICRO_BATCH).all(0).sum())
        keys, draws = batch["pair_ids"], batch["draw"]
        self.apart += int(
            (self._data.ids[lists] != keys.numpy()[column]).sum()
        )  # a row has its column's noise
        sigma = sigmas(DRAWS, seed=SEED, pair_ids=keys, draws=draws, within=(0.0, 1.0))
        columns = (lists[:MICRO_BATCH], draws, keys, sigma)
        self.seen[step].update(zip(*(each.tolist() for each in columns), strict=True))
        np.add.at(self.visits, (draws.numpy().clip(max=1)[column], clips), 1)

    def violations(self, alone: Walk) -> dict[str, int]:
        """`alone`: the walk of one rank that was never resumed."""
        steps = zip(self.seen, alone.seen, strict=True)
        return {
            "lists cut or mixed": self.cut,
            "clips with another list's timestep and noise": self.apart,
            "clips not visited once in the epoch": int((self.visits[0] != 1).sum()),
            "clips visited twice after it": int((self.visits[1] > 1).sum()),
            "steps of other lists or draws than one rank's": sum(ours != theirs for ours, theirs in steps),
        }


def sizes_of(kind: str, count: int) -> list[int]:
    """Clips of each list: `4` of all, or `1 to 6` at random."""
    return [4] * count if kind == "4" else np.random.default_rng(SEED).integers(1, 7, count).tolist()


def figures(sizes: Sequence[int], roads: Sequence[str] = tuple(ROADS), *, epochs: float = EPOCHS) -> dict:
    """What is wrong on each road, and its seconds; a resumed run goes on after a third of the steps."""
    data = Lists(sizes)
    alone = Walk(data, 1, 1, epochs=epochs)
    resumed, found = alone.steps // 3, {}
    for road in roads:
        began = time.perf_counter()
        wrong = Walk(data, *ROADS[road], resumed=resumed, epochs=epochs).violations(alone)
        found[road] = {"violations": wrong, "seconds": round(time.perf_counter() - began, 2)}
    counts = {
        "lists": len(data),
        "clips": len(data.clips),
        "buckets": len(data.buckets),
        "steps": alone.steps,
    }
    return {**counts, "resumed after step": resumed, "ranks": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lists", type=int, default=LISTS)
    count = parser.parse_args().lists
    result = {"lists in a micro-batch": MICRO_BATCH, "micro-batches in a step": MICRO_BATCHES}
    result["clips in a list"] = {kind: figures(sizes_of(kind, count)) for kind in ("4", "1 to 6")}
    result |= {"machine": machine(), "versions": versions()}
    write_json(FILE, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
