"""Single rated clips, groups of one: KTO trains on them; what compares samples refuses them, and no margin is told."""

import json
import math

import numpy as np
import pytest

from pgdpo.checkpoints.best import read_held_out
from pgdpo.messages.errors import InputError
from tests.training import list_worlds
from tests.training.list_worlds import own_config, trained_on
from tests.training.test_group_training import assert_alike, loss_of, objective, predicted, train  # noqa: F401
from tests.worlds import launch, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")
MARGINS = ("margin", "implicit_accuracy", "segment_reward_entropy")


@pytest.fixture(scope="module")
def singles_world(lists_world, tmp_path_factory):
    return list_worlds.made_of(lists_world, tmp_path_factory.mktemp("singles"), list_worlds.singles)


@pytest.fixture
def singles(singles_world, tmp_path):
    return own_config(singles_world, tmp_path)


def test_kto_trains_on_them_and_tells_no_margin(singles, predicted, capfd):  # noqa: F811
    look = ("evaluate.every=2", "evaluate.every_prompts=1", "train.steps=3")
    found = train(singles, "kto", objective("kto"), *look)
    rows = trained_on(singles)
    assert [row["loss"] for row in found[:1]] == [0.5] and found[0]["gradient_norm"] > 0
    for step, row in enumerate(found):
        own = predicted[2 * step : 2 * step + 2]
        assert row["loss"] == pytest.approx(np.mean([loss_of("kto", micro, rows) for micro in own]), rel=5e-5)
        assert all(row.get(name) is None for name in MARGINS)
        label = {name: rows[name]["samples"][0]["label"] for micro in own for name in micro.ids}
        errors = {
            name: error for micro in own for name, error in zip(micro.ids, micro.policy[:, 0], strict=True)
        }
        for side, sign in (("error/chosen", 1), ("error/rejected", -1)):
            of = [errors[name] for name in errors if label[name] == sign]
            assert row[side] == (pytest.approx(np.mean(of), rel=1e-5) if of else None)
    assert len(found) == 3 and all(math.isfinite(row["loss"]) for row in found)
    assert "8 groups" not in (said := capfd.readouterr().out) and "16 groups of 1 sample" in said
    assert "have no margin: no figures of them" in said
    run = singles.parent / "out" / "kto"
    assert read_held_out(run) == [] and list((run / "validation").rglob("*.mp4"))


def test_evaluation_of_single_clips_is_refused(singles):
    train(singles, "kto", objective("kto"), "train.steps=1")
    with pytest.raises(
        InputError, match=r"held_out.index.json: all held-out rows are single clips.*data.held_out"
    ):
        run_pgdpo("evaluate", singles, objective("kto"), "name=kto")


@pytest.mark.parametrize("name", ["dpo", "pg_dpo", "simpo"])
def test_what_compares_samples_refuses_them(singles, name):
    with pytest.raises(
        InputError, match=rf"`{name}` compares samples: group `train-00000-good` .*has one; .*`kto`"
    ):
        run_pgdpo("train", singles, f"objective={{name: {name}}}")


@pytest.mark.slow
def test_with_exit_code_2_and_one_message(singles):
    done = launch("train", singles, "objective={name: dpo}")
    assert done.returncode == 2 and "`dpo` compares samples" in done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.slow
def test_their_batch_is_that_of_all_ranks(singles, ranks):
    steady = (objective("kto", 50), "train.steps=4", "train.learning_rate=1e-3")
    ranks.train(singles, {"one": [*steady, "train.micro_batch_groups=4"]}, ranks=1)
    ranks.train(singles, {"two": steady})
    assert_alike(singles, "two", "one")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["kto", "sft"])
def test_single_clips_beside_pairs_and_lists(lists_world, tmp_path, tmp_path_factory, case):
    """Of a manifest of both, figures are of those that have a margin."""

    def both(number, row):
        return list_worlds.ragged(number, row) if number % 2 else list_worlds.singles(number, row)

    world = list_worlds.made_of(lists_world, tmp_path_factory.mktemp("both"), both)
    config = own_config(world, tmp_path)
    found = train(config, case, f"objective={{name: {case}}}", "evaluate.every=2", "evaluate.every_prompts=0")
    assert all(math.isfinite(row["loss"]) for row in found)
    looks = read_held_out(tmp_path / "out" / case)
    assert [(look["step"], look["pairs"]) for look in looks] == [(0, 1), (2, 1)]
    run_pgdpo("evaluate", tmp_path / "out" / case)
    results = json.loads((tmp_path / "out" / case / "results.json").read_text())
    assert results["displacement"]["pairs"] == 1
    assert results["displacement"]["margin"] == pytest.approx(looks[-1]["margin"]["value"], rel=1e-4)
