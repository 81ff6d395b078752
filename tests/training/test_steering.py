"""`train.steer`: what each rule decides, that it reaches the loss, and that a resumed run decides as any other."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.config.train import LowerBetaRule, RaiseBetaRule, SftWeightRule, StopRule
from pgdpo.messages.errors import InputError
from pgdpo.training.steering import rules
from tests.worlds import metrics, run_pgdpo, stored

pytestmark = pytest.mark.usefixtures("eager_kernels")
LOOK = ("evaluate.every=2", "evaluate.every_prompts=0", "train.steps=8")
# Of 2 training draws of beta 500 nothing is saturated: raised at every look.
RAISE = "train.steer.raise_beta={saturated: 0.5, factor: 2, most: 3000}"
SFT = "train.steer.sft_weight={displacement: 0.0, gain: 0.5, most: 0.6}"


def figures(**values):
    return {name: {"value": value, "low": value, "high": value} for name, value in values.items()}


def train(config_file, name, *overrides, options=()):
    run_pgdpo("train", config_file, *options, f"name={name}", *LOOK, *overrides)
    return config_file.parent / "out" / name


def lines(path, *without) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in without} for row in rows]


def decisions(run) -> list[dict]:
    return [row for row in lines(run / "events.jsonl", "time") if row["event"] == "steer"]


@given(st.floats(1, 5000), st.floats(0, 1))
def test_beta_goes_towards_a_share_of_saturated_logits(beta, saturated):
    lower = LowerBetaRule(saturated=0.3, factor=0.5, least=10)
    higher = RaiseBetaRule(saturated=0.1, factor=3, most=2000)
    change = rules.lower_beta(lower, beta, figures(saturation=saturated))
    assert (change is not None) == (saturated > 0.3 and beta > 10)
    if change is not None:
        assert change.after == max(10, beta * 0.5) < change.before == beta
    change = rules.raise_beta(higher, beta, figures(saturation=saturated))
    assert (change is not None) == (saturated < 0.1 and beta < 2000)
    if change is not None:
        assert change.after == min(2000, beta * 3) > beta
    assert rules.lower_beta(lower, beta, figures(saturation=None)) is None


@given(st.lists(st.floats(0, 1), max_size=12))
@settings(max_examples=50)
def test_the_weight_rises_with_displacement_and_falls_back(seen):
    rule, weight, wanted = SftWeightRule(displacement=0.25, gain=2.0, most=0.75), 0.0, 0.0
    for displaced in seen:
        wanted = min(max(wanted + 2.0 * (displaced - 0.25), 0.0), 0.75)
        change = rules.sft_weight(rule, weight, figures(displacement=displaced))
        weight = weight if change is None else change.after
        assert weight == wanted
    for _ in range(3):
        change = rules.sft_weight(rule, weight, figures(displacement=0.0))
        weight = weight if change is None else change.after
    assert weight == 0.0


def test_a_run_is_stopped_by_an_interval_that_lies_beyond_its_limit_and_by_patience():
    rule, patience = StopRule(displacement=0.5, accuracy=0.6, patience=2), rules.Patience()
    near = figures(loss=1.0, displacement=0.55, implicit_accuracy=0.55)
    near["displacement"]["low"], near["implicit_accuracy"]["high"] = 0.45, 0.65
    assert rules.stop(rule, patience, near) is None
    assert "55% of held-out chosen clips" in rules.stop(
        StopRule(displacement=0.5), rules.Patience(), near | figures(displacement=0.55)
    )
    assert "55% of held-out pairs are told apart" in rules.stop(
        StopRule(accuracy=0.6), rules.Patience(), near | figures(implicit_accuracy=0.55)
    )
    assert rules.stop(rule, patience, near | figures(loss=0.9)) is None
    assert rules.stop(rule, patience, near | figures(loss=0.9)) is None
    assert "2 look(s) in a row without a better held-out loss than 0.9" in rules.stop(rule, patience, near)
    rising = StopRule(patience=1, figure="margin")
    patience = rules.Patience()
    assert [rules.stop(rising, patience, figures(margin=m)) is None for m in (1.0, 2.0, 2.0)] == [
        True,
        True,
        False,
    ]


def test_beta_reaches_the_loss_and_is_written_down(config_file):
    plain, steered = train(config_file, "plain"), train(config_file, "steered", RAISE)
    made = decisions(steered)
    assert [(row["step"], row["rule"], row["before"], row["after"]) for row in made] == [
        (2, "raise_beta", 500.0, 1000.0),
        (4, "raise_beta", 1000.0, 2000.0),
        (6, "raise_beta", 2000.0, 3000.0),
    ]
    assert made[0]["message"].startswith("beta 500 -> 1000: 0% of held-out logits are saturated")
    assert {"displacement", "saturation", "loss"} < made[0].keys()
    rows, before = (metrics(run.parent, run.name) for run in (steered, plain))
    assert [row["steer/beta"] for row in rows] == [500, 500, 1000, 1000, 2000, 2000, 3000, 3000]
    assert [row["loss"] for row in rows[:2]] == [row["loss"] for row in before[:2]]
    # Of equal weights the next margin is equal, and the logits are not.
    assert rows[2]["margin"] == before[2]["margin"] and rows[2]["loss"] != before[2]["loss"]
    first = lines(steered / "held_out.jsonl")
    assert [row["step"] for row in first] == [0, 2, 4, 6, 8]
    # The loss is that of beta as it is configured, so that steps compare.
    assert first[1]["loss"] == lines(plain / "held_out.jsonl")[1]["loss"]


@pytest.mark.parametrize(
    "rule", [RAISE, SFT, "train.steer.cap_margin={logit: 0.001}"], ids=["beta", "sft", "cap"]
)
def test_a_resumed_run_is_steered_as_one_that_was_not(config_file, rule):
    stop = "train.steer.stop={patience: 9}"
    whole = train(config_file, "whole", rule, stop)
    train(config_file, "parts", rule, stop, "train.steps=3")
    parts = train(config_file, "parts", options=["--resume"])
    assert decisions(whole) == decisions(parts)
    assert lines(whole / "held_out.jsonl", "seconds") == [
        row for row in lines(parts / "held_out.jsonl", "seconds") if row["step"] != 3
    ]
    names = ("loss", "margin", "steer/beta", "steer/sft_weight")
    for mine, theirs in zip(metrics(whole.parent, "whole"), metrics(whole.parent, "parts"), strict=True):
        assert [mine.get(name) for name in names] == [theirs.get(name) for name in names]
    theirs = stored(parts)
    assert all(tensor.equal(theirs[name]) for name, tensor in stored(whole).items())


def test_a_stopped_run_is_at_its_end(config_file, capsys):
    still = ("train.learning_rate=1e-30", "train.steer.stop={patience: 1, figure: displacement}")
    run = train(config_file, "early", *still)
    rows = metrics(run.parent, run.name)
    assert len(rows) == 4  # the look at 4 is not better than that at 2
    last = lines(run / "events.jsonl")[-1]
    assert last["event"] == "finished" and last["step"] == len(rows)
    assert "ended by train.steer.stop: 1 look(s) in a row" in last["message"]
    assert (run / "checkpoints" / f"step-{len(rows):08d}").is_dir()
    run_pgdpo("train", run, "--resume")
    assert len(metrics(run.parent, run.name)) == len(rows)
    assert "to go on: --resume --allow-change train.steer" in capsys.readouterr().out
    run_pgdpo("train", run, "--resume", "--allow-change", "train.steer", "train.steer.stop=null")
    assert len(metrics(run.parent, run.name)) == 8


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluate.every=null", RAISE], "train.steer.raise_beta goes by held-out pairs, and evaluate.every is None"),
        (["evaluate.every_pairs=0", SFT], "train.steer.sft_weight goes by held-out pairs"),
        (["train.steer.stop={}"], "train.steer.stop has no limit"),
        (["train.steer.lower_beta={}", "objective={name: sft}"], "objective `sft` has no beta"),
        (
            ["train.steer={lower_beta: {saturated: 0.1}, raise_beta: {saturated: 0.2}}"],
            "below lower_beta.saturated, 0.1",
        ),
        ([SFT, "objective={name: dpo, chosen_pull: 0.1}"], "objective.chosen_pull is set by train.steer too"),
        ([SFT, "objective={name: sft}"], "reference"),
    ],
)  # fmt: skip
def test_a_rule_without_what_it_goes_by_is_refused(config_file, overrides, said):
    with pytest.raises(InputError, match=said):
        train(config_file, "refused", *overrides)


def test_what_a_steered_run_goes_by_stays(config_file):
    train(config_file, "fixed", RAISE, "train.steps=2")
    with pytest.raises(InputError, match="evaluate.draws_per_pair is 2, .* says 3"):
        train(config_file, "fixed", "evaluate.draws_per_pair=3", options=["--resume"])
