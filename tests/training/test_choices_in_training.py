"""What an objective leaves to chance, in whole runs: other ranks and micro-batches and a resumed run choose alike."""

import pytest

from tests.worlds import losses, metrics

SKIP = (
    "objective={name: dpo, beta: 500, saturation_skip: {threshold: -1.0e+9, keep: 0.5}}"  # of all pairs half
)
GUIDED = "objective={name: sgdpo, beta: 500, subset: 0.5}"
LONG = ("train.steps=4", "train.global_batch_groups=4")


@pytest.mark.parametrize(
    ("objective", "more"), [(SKIP, ()), (GUIDED, ("data.segments=4",))], ids=["skip", "sgdpo"]
)
def test_the_pair_decides_not_its_place(config_file, ranks, objective, more):
    out, run = config_file.parent / "out", [objective, *more, *LONG]
    ranks.train(config_file, {"whole": [*run, "train.micro_batch_groups=2"]}, ranks=1)
    # In deterministic mode, where nothing may be handed on from batch to batch.
    single = [*run, "train.micro_batch_groups=1"]
    ranks.train(config_file, {"two": [*single, "train.deterministic=true"]}, ranks=2)
    begun = [*single, "train.steps=2"]
    ranks.train(config_file, {"begun": begun}, ranks=1)
    ranks.run(["train", config_file, "name=begun", *single, "--resume"], ranks=1)
    whole = losses(out, "whole")
    for name in ("two", "begun"):
        assert losses(out, name) == pytest.approx(whole, rel=1e-5), name
    if objective == SKIP:
        shares = [
            [row["saturation_skip/weight"] for row in metrics(out, name)]
            for name in ("whole", "two", "begun")
        ]
        assert shares[0] == shares[1] == shares[2]
        assert set(shares[0]) <= {0.0, 0.5, 1.0, 1.5, 2.0} and len(set(shares[0])) > 1
