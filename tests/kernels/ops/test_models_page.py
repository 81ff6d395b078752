"""kernels/MODELS.md says what was measured and what `apply_to` says; diffusers' own tests pass with models patched."""

import json
import os
from pathlib import Path

import pytest

from pgdpo_kernels.patch.known import FAMILIES

patched = pytest.importorskip("benchmarks.models.patched")
CHECKOUT = os.environ.get(patched.CHECKOUT)


def test_the_page_is_made_from_the_figures():
    assert patched.PAGE.read_text("utf-8") == patched.page(json.loads(patched.FILE.read_text("utf-8")))


def test_every_class_was_measured_and_no_test_of_diffusers_changed():
    models = json.loads(patched.FILE.read_text("utf-8"))["models"]
    assert set(models) == set(FAMILIES)
    for name, row in models.items():
        assert row["calls"] and row["worst_ratio"] <= 2, name
        assert row["own_tests"] is None or row["own_tests"]["differ"] == {}, name


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(
    not CHECKOUT, reason=f"{patched.CHECKOUT} names no checkout of diffusers, whose tests these are"
)
def test_diffusers_own_tests():
    found = {name: row for name, row in patched.own_tests(list(FAMILIES), Path(CHECKOUT)).items() if row}
    assert found and all(row["plain"]["passed"] for row in found.values())
    assert {name: row["differ"] for name, row in found.items() if row["differ"]} == {}
