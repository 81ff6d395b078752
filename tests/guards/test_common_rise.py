"""PG-DPO on a model that fits no clip: said within fifty steps; not where pairs are told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgdpo.checkpoints.events import read_events
from pgdpo.guards.common_rise import EVENT, _warning
from tests.worlds import metrics, run_pgdpo

# All weights are random and trained fast: what both clips of a pair have in common is learnt first.
RANDOM = ("model.random_init=true", "model.adapter=null", "train.learning_rate=3e-3", "train.steps=40")
BATCH = ("train.global_batch_groups=8", "train.micro_batch_groups=8", "train.spike_factor=null")


@pytest.mark.usefixtures("eager_kernels")
def test_a_loss_that_falls_by_what_both_clips_share_is_said_once(config_file, capsys):
    out = config_file.parent / "out"
    failing = ("objective={name: pg_dpo, beta: 50}", *RANDOM, *BATCH, "train.checkpoint_every=40")
    run_pgdpo("train", config_file, "name=failing", *failing)
    last = metrics(out, "failing")[-1]
    assert last["loss"] < 0.05 and last["reward/chosen"] > 0.3 and last["reward/rejected"] > 0.3
    (event,) = [row for row in read_events(out / "failing") if row["event"] == EVENT]
    assert event["step"] <= 50 and "both clips of a pair become likelier" in event["message"]
    assert "objective.ars=none" in capsys.readouterr().out
    run_pgdpo("train", config_file, "name=failing", *failing, "train.steps=70", "--resume")
    assert len([row for row in read_events(out / "failing") if row["event"] == EVENT]) == 1
    run_pgdpo("train", config_file, "name=mended", *failing, "objective.ars=none")
    assert not [row for row in read_events(out / "mended") if row["event"] == EVENT]


@given(st.floats(0.5, 1), st.floats(1.0, 50.0), st.floats(0.0, 1.0), st.integers(16, 2000))
def test_it_is_no_failure_where_the_margin_makes_the_logit_or_pairs_are_told_apart(
    accuracy, logit, share, pairs
):
    told = _warning(pairs, logit, share * logit, accuracy, 0.2, 0.1)
    if share >= 0.1 or accuracy >= 0.8:
        assert told is None
    else:
        assert told is not None or logit <= 1
    assert _warning(pairs, logit, 0.0, 0.5, 0.2, -0.1) is None
    assert _warning(pairs, float("nan"), 0.0, 0.5, 0.2, 0.1) is None
