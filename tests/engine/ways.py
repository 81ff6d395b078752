"""Ways to train one model, all of which have the losses of one: kinds of pipeline x how the run is held and spread.

The ways are the full product of references, ZeRO stages and weights for the first kind of each family, every other
factor changed alone there, and for all kinds together the rows of a covering design (`covering.py`): every pair of
values of two factors trains in one of them. Each is held against its `baseline`. `python -m benchmarks.runs.matrix`
runs all and writes down what comes out; `test_matrix.py` runs them kind by kind.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from tests.engine import told
from tests.engine.covering import covering
from tests.models.families import FAMILIES, KINDS
from tests.models.road import Road
from tests.ranks import Ranks
from tests.worlds import losses

STEPS, BATCH = 5, 4
ALIKE = (("adapter", "frozen", "cached"), ("ema",), ("synced",))  # the same reference, held in different ways
FACTORS = {
    "kind": tuple(KINDS),
    "reference": tuple(itertools.chain.from_iterable(ALIKE)),
    "stage": (0, 1, 2, 3),
    "weights": ("lora", "full"),
    "spread": (
        "one rank",
        "two ranks",
        "shared",
    ),  # shared: two ranks have the tokens of one clip between them
    "checkpointing": ("none", "full", "selective"),
    "kernels": ("eager", "patched"),  # patched: the fused ops' modules, with eager maths in them
    "rows": ("pairs", "groups"),
}
REFUSED = {("adapter", "full"): "train.reference is `adapter` but model.adapter is empty"}
# The largest relative difference of a loss in fp32: of roundings, which Adam magnifies; ways to hold a reference round
# alike.
LIMITS = dict.fromkeys(("stage", "spread", "checkpointing", "kernels", "any"), 1e-5) | {"reference": 1e-6}

WEIGHTS = {  # small steps: Adam magnifies the last bits of a gradient that is nearly 0
    "lora": ["train.learning_rate=5e-5"],
    "full": ["model.adapter=null", "train.learning_rate=3e-6"],
}
# Of these small models all weights are small enough to be held whole beside their shards.
SHARDED = "train.deepspeed.zero_optimization.stage3_param_persistence_threshold=0"
# The few pairs come again in each step, with a draw of its own.
TRAINED = [f"train.steps={STEPS}", f"train.global_batch_groups={BATCH}", "train.micro_batch_groups=1"]
TRAINED += [f"train.cached_draws={STEPS}", "train.reference_ema_alpha=0.25", "train.reference_sync_every=2"]
TRAINED += [f"train.checkpoint_every={STEPS}", "data.held_out=null"]
TRITON = {"steps": 2, "batch": 1}  # a step in Triton's interpreter takes as long as all others together


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to train; fields as `FACTORS`, and `kernels` may be `triton`: the kernels, in Triton's interpreter."""

    kind: str
    reference: str = "frozen"
    stage: int = 0
    weights: str = "lora"
    spread: str = "one rank"
    checkpointing: str = "none"
    kernels: str = "eager"
    rows: str = "pairs"
    short: bool = False  # `TRITON`

    @property
    def name(self) -> str:
        """Of its run, among those of its kind."""
        words = dataclasses.astuple(self)[1:]
        return "-".join(str(word).replace(" ", "_") for word in words[:-1]) + "-short" * self.short

    @property
    def baseline(self) -> Way:
        """The plainest way that has the same losses: one rank, nothing sharded, recomputed or patched."""
        reference = "frozen" if self.reference in ALIKE[0] else self.reference
        kept = {"weights": self.weights, "rows": self.rows, "short": self.short}
        return Way(self.kind, reference, **kept)

    def overrides(self) -> list[str]:
        sharing = [f"train.sequence_parallel={2 if self.spread == 'shared' else 1}"]
        short = [f"train.steps={TRITON['steps']}", f"train.global_batch_groups={TRITON['batch']}"]
        return [
            *(*TRAINED, *WEIGHTS[self.weights], *sharing, *(short if self.short else [])),
            *(f"train.zero_stage={self.stage}", *([SHARDED] if self.stage == 3 else [])),
            *(f"train.reference={self.reference}", f"model.gradient_checkpointing={self.checkpointing}"),
            f"model.kernels={'eager' if self.kernels == 'eager' else 'triton'}",
        ]


def allowed(row: Mapping) -> bool:
    return (row.get("reference"), row.get("weights")) not in REFUSED


@functools.cache
def design() -> tuple[Way, ...]:
    """All ways, kind by kind, each behind its baseline."""
    spread = [Way(**row) for row in covering(FACTORS, allowed)]
    ways = []
    for name in KINDS:
        first = FAMILIES[KINDS[name].family] is KINDS[name]
        own = [*(whole(name) if first else ()), *(way for way in spread if way.kind == name)]
        ways += [each for way in own for each in (way.baseline, way)]
    return tuple(dict.fromkeys(ways))


def whole(name: str) -> Iterator[Way]:
    """The product of references, stages and weights on two ranks, and each other factor changed by itself."""
    for reference, weights, stage in itertools.product(
        *(FACTORS[f] for f in ("reference", "weights", "stage"))
    ):
        if allowed({"reference": reference, "weights": weights}):
            yield Way(name, reference, stage, weights, "two ranks")
    for weights in FACTORS["weights"]:
        plain = Way(name, weights=weights)
        yield dataclasses.replace(plain, spread="shared")
        yield dataclasses.replace(plain, kernels="patched")
        yield from (dataclasses.replace(plain, checkpointing=each) for each in ("full", "selective"))
    yield Way(name, kernels="triton", short=True)


class Runs:
    """Trains one kind of pipeline in many ways; prepares what they need when it is first needed."""

    def __init__(self, name: str, folder: Path, world: Path, root: Path, ranks: Ranks) -> None:
        root.mkdir(exist_ok=True)
        self._name, self._root, self._world, self._ranks = name, root, world, ranks
        self._config = Road(KINDS[name], folder, world, root).config()
        self._done: set[tuple[str, str]] = set()

    def losses(self, way: Way, timeout: float = 900) -> list[float]:
        """Raises AssertionError, with what the ranks printed, where they do not come to their end."""
        self._once("prepare", way.rows)
        if way.reference == "cached":
            self._once("reference", way.rows)
        command = ["train", self._config, f"name={way.name}", *self._data(way.rows), *way.overrides()]
        ranks = 1 if way.spread == "one rank" else 2
        self._told(command, timeout, ranks=ranks, backend="triton" if way.kernels == "triton" else "eager",
                   interpreted=way.kernels != "eager")  # fmt: skip
        return losses(self._root / way.rows, way.name)

    def _once(self, command: str, rows: str) -> None:
        if (command, rows) not in self._done:
            self._told([command, self._config, *self._data(rows), *TRAINED], 900)
            self._done.add((command, rows))

    def _told(
        self, words: list, timeout: float, *, ranks: int = 1, backend: str = "eager", interpreted=False
    ):
        words = [str(word) for word in words]
        self._ranks.call(told.told, backend, *words, timeout=timeout, ranks=ranks, interpreted=interpreted)

    def _data(self, rows: str) -> list[str]:
        """Overrides by which a run trains on pairs, or on groups of three and of two."""
        found = [f"output_dir={self._root / rows}"]
        if rows == "groups":
            found += ["objective={name: lpo, beta: 500}", f"data.train={_grouped(self._world)}"]
        return found


def _grouped(world: Path) -> Path:
    """A manifest beside the toy world's: a row's clips and, in every other group, the next row's rejected one."""
    toy = world / "out" / "toy"
    rows = [json.loads(line) for line in (toy / "train.jsonl").read_text().splitlines()[: BATCH + 1]]
    groups = []
    for number, (row, after) in enumerate(itertools.pairwise(rows)):
        clips = [row["chosen"], row["rejected"], after["rejected"]][: 3 - number % 2]
        samples = [{"clip": clip, "rank": place} for place, clip in enumerate(clips)]
        groups.append({"id": f"group-{number}", "prompt": row["prompt"], "samples": samples})
    path = toy / "train-groups.jsonl"
    path.write_text("".join(json.dumps(group) + "\n" for group in groups), encoding="utf-8")
    return path


def off(first: Iterable[float], second: Iterable[float]) -> float:
    """The largest relative difference of two runs' losses."""
    one, other = np.array(list(first)), np.array(list(second))
    assert (
        one.shape == other.shape and len(set(one)) > 1
    )  # something was learned; a synced one starts from ln 2 again
    return float((np.abs(other - one) / np.abs(one)).max())


def figures(found: Mapping[Way, list[float]]) -> dict[str, float]:
    """Factor -> the largest difference of two runs that differ in it alone; `any`: of any run from its baseline."""
    most = {}
    for one, other in itertools.combinations(found, 2):
        factor = _apart(one, other)
        if factor in LIMITS:
            most[factor] = max(most.get(factor, 0.0), off(found[one], found[other]))
    based = [off(found[way.baseline], found[way]) for way in found if way.baseline in found]
    return most | {"any": max(based, default=0.0)}


def _apart(one: Way, other: Way) -> str | None:
    """The factor by which two ways that have the same losses differ; None where it is none, or several."""
    names = [name for name in FACTORS if getattr(one, name) != getattr(other, name)]
    alike = one.baseline == other.baseline
    return names[0] if alike and len(names) == 1 else None
