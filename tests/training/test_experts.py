"""Both experts of Wan 2.2 in one command: what two runs of one expert train, to the bit, in any order of turns."""

import json
import re

import pytest
import torch

from tests.models.families import KINDS
from tests.models.road import Road
from tests.worlds import metrics, run_pgdpo, stored

EXPERTS = ("high_noise", "low_noise")
COSTS = {"seconds", "pairs_per_second", "tokens_per_second", "mfu", "peak_memory"}
HALF = "train.precision=bf16"
pytestmark = pytest.mark.usefixtures("eager_kernels")


@pytest.fixture(scope="module")
def road(saved, world, tmp_path_factory):
    """A prepared configuration of both experts."""
    kind = KINDS["wan 2.2 t2v a14b high"]
    road = Road(kind, saved(kind.save), world, tmp_path_factory.mktemp("experts"))
    path = road.config(expert="both")
    run_pgdpo("prepare", path)
    return path


@pytest.fixture(scope="module")
def alone(road):
    """`alone(expert, *overrides)`: the folder of a run of that expert alone, trained once."""
    trained = {}

    def train(expert: str, *overrides: str):
        key = expert, *overrides
        if key not in trained:
            name = "-".join([expert, *(re.sub(r"\W", "", word) for word in overrides)])
            run_pgdpo("train", road, f"name={name}", f"model.expert={expert}", *overrides)
            trained[key] = road.parent / "out" / name
        return trained[key]

    return train


def same(part, single) -> bool:
    """Whether two runs have the same figures, but for their costs, and the same newest checkpoint."""
    found, wanted = stored(part), stored(single)
    assert found and found.keys() == wanted.keys()
    figures = [
        [{key: value for key, value in row.items() if key not in COSTS} for row in rows]
        for rows in (metrics(part.parent, part.name), metrics(single.parent, single.name))
    ]
    return figures[0] == figures[1] and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("given", [[], [HALF], ["train.expert_turns=1"]], ids=" ".join)
def test_both_are_what_two_runs_train(road, alone, given):
    name = "both-" + "-".join(re.sub(r"\W", "", word) for word in given)
    run_pgdpo("train", road, f"name={name}", *given)
    run = road.parent / "out" / name
    for expert in EXPERTS:
        single = alone(expert, *(word for word in given if "turns" not in word))
        assert same(run / expert, single)
    assert not (run / "checkpoints").exists()
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "finished"]
