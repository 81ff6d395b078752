"""The benchmark of whole steps runs from end to end on a tiny model, so that time on a GPU is not lost."""

import json
import math

import pytest

from benchmarks.train_step import run


@pytest.mark.timeout(900)  # three whole runs, minutes where others use the cores too
def test_variants_run_on_a_tiny_model_and_leave_their_figures(tmp_path):
    out = tmp_path / "figures" / "step.json"
    assert run(variants="abc", tiny=True, out=out) == out
    result = json.loads(out.read_text())
    assert result["times_mean_something"] is False and result["machine"]["device"]
    found = result["variants"]
    assert set(found) == set("abc") and set(result["compared"]) == set("bc")
    first = {name: row["losses"][0] for name, row in found.items()}
    assert first["a"] == pytest.approx(math.log(2), rel=1e-6)  # plain DPO
    assert first["b"] == first["c"]  # PG-DPO, beside a reference and with its errors from the cache
    for row in found.values():
        assert len(set(row["losses"])) > 1 and row["peak_memory"] > 0 and row["seconds"] > 0
