"""The covering design against a count of its own."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine import ways
from tests.engine.covering import covering
from tests.models.families import FAMILIES, KINDS


def missing(factors, rows, allowed) -> set:
    """Pairs of values that no row has."""
    places = {
        (one, a, other, b)
        for one in factors
        for other in factors
        if one < other
        for a in factors[one]
        for b in factors[other]
        if allowed({one: a, other: b})
    }
    return places - {
        (one, row[one], other, row[other]) for row in rows for one in row for other in row if one < other
    }


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    refused=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_every_pair_of_values_stands_in_a_row(sizes, refused):
    factors = {f"f{number}": tuple(range(size)) for number, size in enumerate(sizes)}
    never = sizes[0] > refused[0] and sizes[1] > refused[1] > 0 and refused[0] > 0

    def allowed(row):
        return not never or (row.get("f0"), row.get("f1")) != refused

    rows = covering(factors, allowed)
    assert missing(factors, rows, allowed) == set()
    assert all(allowed(row) and list(row) == list(factors) for row in rows)
    one, other = sorted(sizes)[-2:]
    assert len(rows) <= one * other + 2 * len(sizes) + one


def test_the_matrix_has_every_pair_and_the_products():
    rows = [
        {name: getattr(way, name) for name in ways.FACTORS}
        for way in ways.design()
        if way.kernels != "triton"
    ]
    assert missing(ways.FACTORS, rows, ways.allowed) == set()
    for kind in FAMILIES.values():
        name = next(name for name, each in KINDS.items() if each is kind)
        held = {
            (row["reference"], row["stage"], row["weights"])
            for row in rows
            if row["kind"] == name and row["spread"] == "two ranks"
        }
        assert len(held) == math.prod((5, 4, 2)) - 4
    done = set()
    for way in ways.design():
        assert way.baseline in done | {way}
        done.add(way)


def test_a_figure_is_of_one_factor_alone():
    way = ways.Way("ltx")
    other = ways.Way("ltx", stage=3, spread="two ranks")
    between = ways.Way("ltx", spread="two ranks")
    moved = ways.Way("ltx", reference="ema")
    found = {way: [1.0, 2.0], other: [1.0, 2.2], between: [1.0, 2.1], moved: [1.0, 9.0]}
    figures = ways.figures(found)
    assert set(figures) == {"spread", "stage", "any"}
    assert abs(figures["spread"] - 0.05) < 1e-9 and abs(figures["stage"] - 0.1 / 2.2) < 1e-9
    assert abs(figures["any"] - 0.1) < 1e-9
