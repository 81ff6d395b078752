"""Each alarm of the report, at the numbers that it is for."""

import math

from pgdpo.report.alarms import alarms
from tests.report.test_report import BUCKETS, made_results, metric_rows


def states(metrics, results) -> dict[str, str]:
    return {alarm.title: alarm.state for alarm in alarms(metrics, results, 500)}


def test_each_alarm_goes_off_at_its_own_defect_alone():
    healthy = states(metric_rows(), made_results())
    assert set(healthy.values()) == {"ok"}

    def worse(metrics=None, displacement=None, reward=None):
        results = made_results()
        results["displacement"] |= displacement or {}
        results["reward"]["aligned"] |= reward or {}
        rows = metric_rows()
        for row in rows[-10:]:
            row |= metrics or {}
            row["buckets"][BUCKETS[1]] |= metrics or {}
        return [title for title, state in states(rows, results).items() if state == "warning"]

    assert worse(displacement={"value": 0.75}) == ["Likelihood displacement"]  # of 32 pairs
    assert worse(displacement={"implicit_accuracy": 0.3}) == ["Implicit accuracy"]
    assert worse(metrics={"reward/chosen": 0.02, "reward/rejected": 0.0}) == [
        "Saturated logits"
    ]  # 250 * 0.02 = 5
    # PG-DPO: equal rewards, but only half of the rejected one is subtracted.
    assert worse(metrics={"reward/chosen": 0.04, "reward/rejected": 0.04}) == []
    scaled = {"reward/chosen": 0.04, "reward/rejected": 0.04, "ars/alpha": 0.5}
    assert worse(metrics=scaled) == ["Saturated logits"]
    # Omega, which multiplies beta: 250 * 0.5 * 0.02.
    assert worse(metrics={"reward/chosen": 0.02, "reward/rejected": 0.0, "timestep_weight": 0.5}) == []
    assert worse(metrics={"gradient_share/rejected": 0.7}) == ["Gradient of the rejected half"]
    assert worse(reward={"smoothness": 0.5}) == ["Every part of the reward"]
    assert worse(metrics={"loss": math.nan}) == ["Non-finite numbers"]


def test_skipped_steps_raise_the_alarm():
    rows = [row | {"skipped_steps": 2} for row in metric_rows()]
    assert states(rows, made_results())["Non-finite numbers"] == "warning"


def test_a_loss_that_json_has_no_word_for_raises_the_alarm():
    rows = metric_rows()
    rows[4]["loss"] = None
    [alarm] = [alarm for alarm in alarms(rows, made_results(), 500) if alarm.title == "Non-finite numbers"]
    assert alarm.state == "warning" and "first at step 5, in 1 of 40" in alarm.value


def test_an_interval_on_both_sides_of_a_threshold_is_no_verdict():
    """Of 32 pairs 51% may be 34% or 68%; without results the newest look at held-out pairs counts."""
    results = made_results()
    results["displacement"] |= {"value": 0.51, "implicit_accuracy": 0.5}
    [displaced, accurate] = [a for a in alarms(metric_rows(), results, 500) if a.state == "open"]
    assert displaced.value == "51% of 32 held-out pairs (95%: 35% to 67%): not enough to say"
    assert accurate.title == "Implicit accuracy"
    look = {"pairs": 400, "displacement": {"value": 0.6, "low": 0.55, "high": 0.65}}
    found = {a.title: a for a in alarms(metric_rows(), {}, 500, looks=[{"pairs": 400}, look])}
    assert found["Likelihood displacement"].state == "warning"
    assert found["Likelihood displacement"].value == "60% of 400 held-out pairs (95%: 55% to 65%)"
    assert "training pairs" in found["Implicit accuracy"].value


def test_what_pg_dpo_falls_by_is_an_alarm_of_its_own():
    said = {"step": 25, "event": "common rise", "message": "both clips"}
    results = made_results()
    [alarm] = [a for a in alarms(metric_rows(), results, 500, events=[said]) if a.state == "warning"]
    assert alarm.title == "What the loss falls by" and "step 25" in alarm.value
    others = alarms(metric_rows(), results | {"objective": "dpo"}, 500, events=[said])
    assert "What the loss falls by" not in {a.title for a in others}
