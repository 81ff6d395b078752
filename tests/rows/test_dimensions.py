"""Labels of a pair's parts, and what is said of them."""

import pytest

from pgdpo.rows.dimensions import label_notes, label_of

pytestmark = pytest.mark.quick
PARTS = ("video", "audio")


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({}, 1),
        ({"dimensions": None}, 1),
        ({"dimensions": {"video": 0.0}}, 1),
        ({"dimensions": {"audio": 0.0}}, -1),
        ({"dimensions": {"audio": 0.49}}, -1),
        ({"dimensions": {"audio": 0.5}}, 0),
        ({"dimensions": {"audio": 0.51}}, 1),
    ],
)
def test_a_share_above_one_half_is_a_label_as_the_pairs(row, label):
    assert label_of(row, "audio") == label


def test_what_is_said_of_rows_is_how_many_have_another_label():
    rows = [{}, {"dimensions": {"audio": 0, "motion": 1}}, {"dimensions": {"audio": 0.5}}]
    rows += [{"dimensions": {"audio": 0.2, "video": 1, "text": 0}}]
    labels, unread = label_notes(rows, PARTS)
    assert labels == "dimensions: of 4 pairs audio 2 the other way, 1 a tie"
    assert "`motion`, `text`: no part of what the model makes (video, audio)" in unread
    assert label_notes(rows, ("video",)) == []
    assert label_notes([{}, {"dimensions": {"video": 1, "audio": 0.9}}], PARTS) == []
