"""What the report, its alarms and the tables say of sound and picture, each and together."""

import json
import math

import pytest
import yaml
from rich.console import Console

from pgdpo.evaluation.comparison import study_table, summarise
from pgdpo.evaluation.summary import summary_table
from pgdpo.objectives.parts import FORMS, Parts
from pgdpo.report.alarms import alarms
from pgdpo.report.compare import Compared, beside
from pgdpo.report.curves.series import curves
from pgdpo.report.report import write_report
from pgdpo.training.held_out.statistics import share
from pgdpo.training.panels import PANELS, panels_of, parts_of
from pgdpo.training.trackers import scalars
from tests.report.test_report import CONFIG, made_results

pytestmark = pytest.mark.quick


def rows(*, audio: float, gradient: float = 0.5, steps: int = 40) -> list[dict]:
    """Training metrics: `audio`, its displacement, and its share of the `gradient`."""
    found = []
    for step in range(1, steps + 1):
        of = {"implicit_accuracy": 0.7, "margin": 1e-5 * step, "excess/chosen": -1e-5 * step}
        parts = {
            "video": {**of, "displacement": 0.1, "gradient_share": 1 - gradient},
            "audio": {**of, "displacement": audio, "gradient_share": gradient},
        }
        whole = {**of, "displacement": 0.1, "loss": 0.6}
        found.append({"step": step, **whole, "parts": parts})
    return found


def judged(displaced: int, pairs: int) -> dict:
    return {
        **share(displaced, pairs),
        "pairs": pairs,
        "margin": 2e-4,
        "implicit_accuracy": 0.6,
        "excess/chosen": -1e-4,
    }


def results(audio: int) -> dict:
    """Of 100 held-out pairs, of which 60 sound; `audio`: displaced ones of those."""
    whole = made_results() | {"displacement": judged(10, 100)}
    parts = {"video": judged(8, 100), "audio": judged(audio, 60)}
    parts = {name: {"displacement": each, "buckets": {}} for name, each in parts.items()}
    moved = {name: {"displacement": each["displacement"]} for name, each in parts.items()}
    whole["objectives"] = [{**row, "parts": moved} for row in whole["objectives"]]
    return whole | {"parts": parts}


def by_title(found) -> dict:
    return {alarm.title: alarm for alarm in found}


def test_a_part_that_falls_is_told_while_the_whole_looks_well():
    found = by_title(alarms(rows(audio=0.9), results(audio=52), 500))
    assert found["Likelihood displacement"].state == found["Likelihood displacement, video"].state == "ok"
    sound = found["Likelihood displacement, audio"]
    assert sound.state == "warning" and "while the whole looks well" in sound.value
    assert "87% of 60 held-out pairs" in sound.value and "objective.parts" in sound.meaning
    calm = by_title(alarms(rows(audio=0.1), results(audio=6), 500))["Likelihood displacement, audio"]
    assert calm.state == "ok" and "whole" not in calm.value


def test_where_nothing_was_evaluated_looks_and_then_training_judge():
    looked = {"pairs": 60, "displacement": share(52, 60)}
    look = {"step": 40, "pairs": 100, "displacement": share(10, 100), "parts": {"audio": looked}}
    found = by_title(alarms(rows(audio=0.1), {}, 500, looks=[look]))
    assert found["Likelihood displacement, audio"].state == "warning"
    trained = by_title(alarms(rows(audio=0.9), {}, 500))["Likelihood displacement, audio"]
    assert trained.state == "warning" and "training" in trained.value


@pytest.mark.parametrize("share", [0.97, 0.5, 0.02])
def test_the_weight_that_would_balance_is_named(share):
    alarm = by_title(alarms(rows(audio=0.1, gradient=share), {}, 500, parts=Parts({"audio": 0.3})))
    alarm = alarm["Gradient of the parts"]
    assert alarm.state == ("ok" if share == 0.5 else "warning")
    if share == 0.97:  # its gradient is 32 times the picture's
        assert f"objective.parts.audio {0.3 * 0.03 / 0.97:.2g} would" in alarm.value
    if share == 0.02:
        assert f"objective.parts.video {0.02 / 0.98:.2g} would" in alarm.value


def test_the_last_quarter_alone_counts():
    early, late = rows(audio=0.1, gradient=0.99, steps=30), rows(audio=0.1, gradient=0.5, steps=10)
    assert by_title(alarms([*early, *late], {}, 500))["Gradient of the parts"].state == "ok"
    assert (
        by_title(alarms([*late, *late, *late, *early[:10]], {}, 500))["Gradient of the parts"].state
        == "warning"
    )


def test_a_part_that_was_given_no_weight_is_no_alarm():
    titles = by_title(alarms(rows(audio=0.1, gradient=0.0), {}, 500, parts=Parts({"audio": 0.0})))
    assert "Gradient of the parts" not in titles


def test_logits_are_of_the_sigmoids_that_there_are():
    """Two rewards that part make up for each other in one sigmoid; in one each the larger saturates its own."""
    reward = {
        "video": {"reward/chosen": 0.03, "reward/rejected": 0.0},
        "audio": {"reward/chosen": -0.03, "reward/rejected": 0.0},
    }
    bucket = {"reward/chosen": 0.0, "reward/rejected": 0.0, "parts": reward}
    metrics = [{**row, "buckets": {"sigma_0.25_0.50": bucket}} | {"parts": reward} for row in rows(audio=0.1)]
    inside, separate = (
        by_title(alarms(metrics, {}, 500, parts=Parts({}, form)))["Saturated logits"] for form in FORMS
    )
    assert inside.state == "ok" and separate.state == "warning"
    assert separate.value == "mean logit of video 7.5 at σ 0.25–0.50"


def test_samples_of_one_part_have_no_alarm_of_parts():
    plain = [{key: value for key, value in row.items() if key != "parts"} for row in rows(audio=0.1)]
    assert len(alarms(plain, {}, 500)) == len(alarms(rows(audio=0.1), {}, 500)) - 3


def test_panels_by_part_have_a_line_and_a_colour_each():
    look = {"step": 40, "parts": {"audio": {"displacement": share(10, 60)}}}
    drawn = {
        each.panel.title: each
        for each in curves(rows(audio=0.4), panels_of(["video", "audio"]), held_out=[look, look])
    }
    assert {"Margin by part", "Chosen error by part", "Displacement by part", "Gradient by part"} <= set(
        drawn
    )
    assert {"Margin", "Displacement"} <= set(drawn)  # of the whole
    moved = drawn["Displacement by part"].series
    assert [each.label for each in moved] == ["video", "audio", "audio, held out"]
    assert moved[0].colour != moved[1].colour == moved[2].colour
    assert moved[1].y[-1] == 0.4 and moved[2].y[0] == pytest.approx(10 / 60)
    assert panels_of(["video"]) == list(PANELS)


def test_several_runs_are_drawn_by_part_on_the_same_axes(tmp_path):
    runs = [
        Compared(name, f"run{i}", tmp_path, None, rows(audio=i / 4), [], {}) for i, name in enumerate("ab", 1)
    ]
    drawn = {each.panel.title: each for each in beside(runs)}
    assert [each.label for each in drawn["Displacement by part, audio"].series] == ["a", "b"]


def test_trackers_have_each_part_under_its_name():
    found = dict(scalars(rows(audio=0.4)[-1]))
    assert found["parts/audio/displacement"] == 0.4 and found["displacement"] == 0.1
    held_out = {"held_out": {"parts": {"audio": {"margin": {"value": 1.0, "low": 0.5, "high": None}}}}}
    assert dict(scalars(held_out)) == {
        "held_out/parts/audio/margin": 1.0,
        "held_out/parts/audio/margin/low": 0.5,
    }


def test_the_page_has_a_row_for_each_part(tmp_path, monkeypatch):
    monkeypatch.setattr("pgdpo.report.curves.svg.draw", lambda *_: ("", "{}"))
    metrics = rows(audio=0.9, gradient=0.98)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    config = CONFIG | {"objective": {"name": "dpo", "beta": 500, "parts": {"audio": 0.3, "form": "inside"}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "results.json").write_text(json.dumps(results(audio=52)))
    page = write_report(tmp_path).read_text()
    section = page.partition('<section id="parts">')[2].partition("</section>")[0]
    assert section.count('scope="row"') == 2
    audio = section.partition(">audio</th>")[2]
    for figure in ("60", "87%", "60%", "+200.00", "98%"):
        assert figure in audio, figure
    assert "objective.parts.audio 0.0061 would" in page and "while the whole looks well" in page
    assert page.count("Displacement, audio</th>") == 1  # of the runs beside each other
    (tmp_path / "results.json").write_text(json.dumps(made_results()))
    (tmp_path / "metrics.jsonl").write_text("")
    assert '<section id="parts">' not in write_report(tmp_path).read_text()


def text_of(table) -> str:
    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_tables_name_the_displacement_of_each_part():
    said = text_of(summary_table(results(audio=52)))
    assert "displacement, video" in said and "87% (76%–93%)" in said
    moved = {name: {"displacement": judged(count, 60)} for name, count in (("video", 6), ("audio", 52))}
    row = {
        "label": "dpo",
        "objective": "dpo",
        "options": {},
        "failed": None,
        "win_rate": None,
        "parts": moved,
    }
    row |= {"displacement": judged(6, 60), "margin": 1e-4, "seconds_per_step": 1.0}
    entries = summarise([{**row, "seed": seed} for seed in range(3)])
    assert entries[0]["parts"]["audio"]["displacement"]["value"] == pytest.approx(52 / 60)
    assert entries[0]["parts"]["audio"]["margin"]["value"] == pytest.approx(2e-4)
    result = {"objectives": entries, "budget": {"steps": 5, "pairs_per_step": 2}, "machine": "a test"}
    said = text_of(study_table(result))
    assert "displacement, audio" in said and "margin, video" in said


def test_names_of_parts_come_from_any_row():
    assert parts_of([{}, {"parts": None}, *rows(audio=0.1, steps=1)]) == ["video", "audio"]
    assert parts_of([{"loss": math.nan}]) == []
