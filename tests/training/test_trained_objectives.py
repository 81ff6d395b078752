"""Every objective that is listed as training here, trained through the trainer with the data that it needs."""

import math

import numpy as np
import pytest
from PIL import Image

from pgdpo.checkpoints.best import read_held_out
from pgdpo.messages.errors import InputError
from pgdpo.models.guidance import negative_branch
from pgdpo.objectives import needs_of
from pgdpo.objectives.catalogue.standing import TRAINS
from tests.training.test_objectives_in_training import prepare_with, refusal, train
from tests.worlds import run_pgdpo, share_pairs, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels")
LOOK = ("evaluate.every=2", "evaluate.every_prompts=0")
KINDS = ("kto", "dense_dpo", "local_dpo", "video_dpo", "linear_dpo", "smpo")  # of data; the others are slow


class TestTheCatalogue:
    """Every objective that is listed as training here, through the trainer, on one prepared world with all columns."""

    # What a pair brings for each field of PairInfo that some objective needs; `row` is its number.
    COLUMNS = {
        "probability": lambda row: 0.9 if row % 2 else 0.6,
        "reward_margin": lambda row: 0.5 + row / 10,
        "reward": lambda row: [1.0, row / 20],
        "segment_labels": lambda row: [1, -1 if row % 3 else 0],
        "tail": lambda row: [0.0, (row % 4) / 4],
        "uncertainty": lambda row: row / 12,
        "advantage": lambda row: [0.5, -0.2 - row / 20],
    }

    @pytest.fixture(scope="class")
    def catalogue(self, world, tmp_path_factory):
        """(configuration, the override that trains on all columns and masks)."""
        folder = tmp_path_factory.mktemp("catalogue")
        config = write_config(folder / "config.yaml", share_pairs(folder, world), world / "tiny_wan")
        mask = (folder / "out" / "toy").resolve() / f"mask-{folder.name}.png"
        Image.fromarray(np.pad(np.full((32, 32), 255, np.uint8), 16)).save(mask)
        return config, prepare_with(config, mask=lambda row: mask.name, **self.COLUMNS)

    def trained(self, catalogue, name):
        config, columns = catalogue
        short = (columns, "train.steps=2", "train.checkpoint_every=2", *TRAINS[name], *LOOK)
        return train(config, name, f"objective={{name: {name}}}", *short)

    @pytest.mark.parametrize(
        "name", [pytest.param(name, marks=[] if name in KINDS else pytest.mark.slow) for name in TRAINS]
    )
    def test_it_trains(self, catalogue, name):
        rows = self.trained(catalogue, name)
        assert all(math.isfinite(row["loss"]) for row in rows)
        if needs_of(name).reference:
            assert rows[0]["margin"] == 0 != rows[-1]["margin"]  # the step between them moved the policy
        assert rows[0]["gradient_norm"] > 0
        looks = read_held_out(catalogue[0].parent / "out" / name)
        assert [look["step"] for look in looks] == [0, 2] and looks[0]["margin"]["value"] == 0 != looks[1][
            "margin"
        ]["value"]

    def test_the_columns_are_all_that_the_table_needs(self):
        needed = {column for name in TRAINS for column in needs_of(name).pairs}
        made = {"masked", "timestep", "gap_frequency"}  # from a picture, by the trainer, from scores
        assert needed == made | set(self.COLUMNS)
        for name in TRAINS:
            needs = needs_of(name)
            assert not needs.data or needs.noisy == "inverted", f"{name}: no prepared data hold {needs.data}"


def test_video_dpo_counts_the_gaps_of_scores(config_file):
    """A manifest without scores is refused by name; with them the share of each bin is the column."""
    rule = "data.weight={by: gap_frequency, score: total, bins: 4}"
    objective = "objective={name: video_dpo, beta: 500}"
    assert "`gap_frequency`" in refusal(config_file, objective)
    rows = train(config_file, "video", objective, rule, "train.steps=1")
    assert rows[0]["video_dpo/weight"] > 0
    override = prepare_with(config_file, scores=lambda row: None)
    message = refusal(config_file, override, objective, rule)
    assert "scores.chosen.total" in message and "data.weight `gap_frequency`" in message


def test_smpo_and_adpo_refuse_hard_labels(config_file):
    override = prepare_with(config_file, probability=lambda row: 1.0)
    for objective, *more in (("smpo", "diffusion.inversion_steps=2"), ("adpo",)):
        with pytest.raises(InputError, match=f"`{objective}` lives by how sure a label is.* all 12 rows"):
            run_pgdpo("train", config_file, override, f"objective={{name: {objective}}}", *more)


def test_linear_dpo_asks_for_its_reference(config_file):
    message = refusal(config_file, "objective={name: linear_dpo}")
    assert "follows the policy as an EMA" in message and "set train.reference to `ema`" in message


def test_npo_samples_with_its_adapter_in_the_unconditional_branch(config_file, monkeypatch):
    """In validation and in evaluation; without guidance there is no such branch."""
    used = []

    def recorded(transformer, positive, samples):
        used.append(samples)
        return negative_branch(transformer, positive, samples)

    monkeypatch.setattr("pgdpo.sampling.clips.negative_branch", recorded)
    npo = (
        "objective={name: npo, beta: 500}",
        "train.steps=2",
        "evaluate.every=2",
        "evaluate.every_prompts=1",
    )
    run_pgdpo("train", config_file, "name=npo", *npo)
    run_pgdpo("evaluate", config_file, "name=npo", *npo)
    assert used == [1, 2]  # clips: a prompt of validation, the batch of evaluation's aligned model
    for changed, key in (
        ("evaluate.guidance_scale=1", "evaluate.guidance_scale is 1"),
        ("model.adapter=null", "evaluate.every is 2"),
    ):
        with pytest.raises(InputError, match=key):
            run_pgdpo("train", config_file, *npo, changed)


def test_a_run_says_what_its_objective_nearly_is_and_what_its_batch_is(config_file, capfd):
    for name, said in (
        ("cal_dpo", "is dpo at beta 5000 at these options, to 4e-06 of its gradient"),
        ("lpo", "no row has `samples`: each pair is a list of two, which is dpo"),
        ("aot", "one micro-batch of all ranks"),
    ):
        train(config_file, name, f"objective={{name: {name}}}", "train.steps=1")
        assert said in " ".join(capfd.readouterr().out.split())


def test_pairs_that_a_list_was_taken_apart_into_train_as_pairs(config_file, capfd):
    """`group` and `rank`, which `pgdpo import best_of_n --pairs` writes, are read by no objective, and that is said."""
    override = prepare_with(config_file, group=lambda row: row // 3, rank=lambda row: [row % 3, row % 3 + 1])
    rows = train(config_file, "lpo", override, "objective={name: lpo}", "train.steps=1")
    assert rows[0]["loss"] == pytest.approx(math.log(2)) and rows[0]["margin"] == 0
    assert "`group` of pairs is not read" in " ".join(capfd.readouterr().out.split())
