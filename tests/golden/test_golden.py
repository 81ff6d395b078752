"""Five short runs give the losses that are recorded: nothing moved that was not meant to."""

import copy
import json
import math

import pytest
import torch

from tests.golden import record, renew
from tests.golden.inputs import pixels_sha256
from tests.golden.record import differences, explain, read
from tests.golden.runs import RUNS, run_all
from tests.ranks import PINNED

LN2 = float(torch.tensor(math.log(2), dtype=torch.float32))


def test_the_runs_are_the_recorded_ones_and_a_defect_is_found(ranks, tmp_path):
    """One test, since the runs are made once for each worker that asks for them."""
    recorded = read()
    found = run_all(tmp_path, ranks)
    exact = found.stack == recorded.stack
    for run in RUNS:
        assert found.tables[run][0]["margin"] == 0.0, run
    assert found.tables["dpo_lora"][0]["loss"] == LN2
    moved = differences(recorded.tables, found.tables, exact=exact)
    assert not moved, explain(moved, recorded, found.stack, exact=exact)
    # beta is one ten-thousandth too large: the first loss is ln 2 all the same, and the second is not the recorded
    # one. Where 1e-5 are asked for, it shows as soon as there are margins for beta to act on.
    defect = {"dpo_lora": found.tables["defect"]}
    assert found.tables["defect"][0]["loss"] == LN2
    first = {one.column: one.step for one in differences(found.tables, found.tables | defect, exact=True)}
    assert (first["gradient_norm"], first["loss"]) == (1, 2)
    assert any(
        one.column == "loss" for one in differences(recorded.tables, found.tables | defect, exact=False)
    )


def altered(tables, run, step, column, factor):
    tables = copy.deepcopy(tables)
    row = next(row for row in tables[run] if row["step"] == step)
    row[column] *= factor
    return tables


@pytest.mark.parametrize(("factor", "exact"), [(1 + 2**-52, True), (1 + 2e-5, False), (1 - 2e-5, False)])
def test_a_number_that_moved_is_named_with_its_run_step_and_column(factor, exact):
    recorded = read()
    now = altered(recorded.tables, "pg_dpo_lora_cached", 5, "loss", factor)
    (found,) = differences(recorded.tables, now, exact=exact)
    assert (found.run, found.step, found.column, found.steps) == ("pg_dpo_lora_cached", 5, "loss", 1)
    text = explain([found], recorded, recorded.stack | {"torch": "0.0"}, exact=exact)
    for part in (
        f"pg_dpo_lora_cached, step 5, loss: recorded {found.recorded!r}, now {found.now!r}",
        'python -m tests.golden.renew --reason "',
        json.dumps(recorded.stack),
        '"torch": "0.0"',
        "they differ in: torch; the clips are as recorded",
        recorded.reason,
    ):
        assert part in text


def test_elsewhere_a_last_bit_may_differ_and_a_zero_may_not():
    recorded = read()
    near = altered(recorded.tables, "dpo_lora", 3, "loss", 1 + 5e-6)
    assert not differences(recorded.tables, near, exact=False)
    near["dpo_lora"][0]["margin"] = 1e-12
    (found,) = differences(recorded.tables, near, exact=False)
    assert (found.step, found.column) == (1, "margin")


def test_a_lost_step_column_or_run_is_a_difference():
    recorded = read()
    lost = copy.deepcopy(recorded.tables)
    del lost["dpo_lora"][-1], lost["pg_dpo_lora"][0]["loss"], lost["pg_dpo_full_frozen"]
    found = {(one.run, one.step, one.column) for one in differences(recorded.tables, lost, exact=False)}
    assert {("dpo_lora", 8, "loss"), ("pg_dpo_lora", 1, "loss"), ("pg_dpo_full_frozen", 1, "loss")} <= found


def test_what_is_recorded_starts_without_a_margin_and_learns():
    recorded = read()
    assert recorded.reason and recorded.stack["environment"] == PINNED
    assert recorded.tables["dpo_lora"][0]["loss"] == LN2
    for run, table in recorded.tables.items():
        assert [row["step"] for row in table] == list(range(1, 9)), run
        assert table[0]["margin"] == 0.0 and len({row["loss"] for row in table}) == 8, run


def test_the_clips_decode_to_the_recorded_pixels():
    assert pixels_sha256() == read().pixels


def test_a_missing_file_fails_and_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "LOSSES", tmp_path)
    with pytest.raises(
        AssertionError, match=r"dpo_lora\.csv.* is not there; python -m tests\.golden\.renew --reason"
    ):
        read()


@pytest.mark.parametrize("words", [[], ["--reason"], ["--reason", " "]])
def test_renewal_asks_for_a_reason(words, capsys):
    with pytest.raises(SystemExit) as ended:
        renew.main(words)
    assert ended.value.code == 2 and "--reason" in capsys.readouterr().err
