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


def test_pairs_of_which_nothing_is_learnt_are_said():
    """A tie in the picture of a pair that is silent, or whose sound has no weight."""
    swapped = {"dimensions": {"video": 0.5, "audio": 1}}
    rows = [{"sound": True, **swapped}, {"sound": False, **swapped}, {"sound": True}]
    idle = [note for note in label_notes(rows, ("video", "audio")) if "nothing is learnt" in note]
    assert idle == [
        "dimensions: 1 of 3 pairs are a tie in every part that counts: nothing is learnt of these"
    ]
    assert "2 of 3 pairs" in "".join(label_notes(rows, ("video", "audio"), {"audio": 0.0}))
    assert not any("nothing is" in note for note in label_notes(rows[:1], ("video", "audio")))
