"""What `import table` makes of columns and values: the right pairs, or a refusal that says what to type; no third."""

import json
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.files.tables import Record, read_records
from pgdpo.messages.errors import InputError
from pgdpo.rows.importers import FORMATS, Options, import_data
from pgdpo.rows.importers.columns.told import Columns, Unclear, find
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.quick

SIDES = [("a", "b"), ("1", "2"), ("0", "1"), ("left", "right"), ("first", "second")]
STEMS = ["video_{}", "{}_video", "Video {}", "clip{}_path", "file name {}", "VIDEO_{}_URL"]
WORDS = ["{}", "video {}", "Video_{}", "{} is better", "{} wins", "the {} video"]
TIES = ["tie", "Same", "no preference", "both bad", "Equal"]


def records(table):
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return [Record("t.csv", row, line=number) for number, row in enumerate(rows, start=2)]


def clips(count):
    return [f"c/{number}-x.mp4" for number in range(count)], [f"c/{number}-y.mp4" for number in range(count)]


def found(table, **given):
    """The Columns, or why they are not clear."""
    try:
        return find(records(table), given)
    except (Unclear, ValueError) as unclear:
        return str(unclear)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_words_for_the_two_sides_give_the_right_clip_or_are_refused(data):
    """The truth is drawn, then said in words; what is read must be the truth, whichever column stands first."""
    named = data.draw(st.sampled_from(SIDES))
    said = named if data.draw(st.booleans()) else data.draw(st.sampled_from(SIDES))
    truth = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=12))
    form, tie = data.draw(st.sampled_from(WORDS)), data.draw(st.sampled_from(TIES))
    if named != said and named[0].isdigit() and said[0].isdigit():
        form = "{}"  # nobody calls the column `video_2` "video 1"; a bare 1 may be its label
    values = [tie if share == 0.5 else form.format(said[0] if share else said[1]) for share in truth]
    first, second = clips(len(truth))
    stem = data.draw(st.sampled_from(STEMS))
    sides = [(stem.format(named[0]), first), (stem.format(named[1]), second)]
    others = [("Winner", values), ("prompt", ["p"] * len(truth)), ("seed", [3] * len(truth))]
    table = dict(data.draw(st.permutations([*sides, *others])))
    columns = found(table)
    if isinstance(columns, Columns):
        swapped = columns.a != sides[0][0]
        shares = [columns.verdicts.share_of(each.values["Winner"], each) for each in records(table)]
        # 0 and 1 beside columns of other numbers, or 1 and 2 beside 0 and 1: never guessed
        assert shares == [1 - share if swapped else share for share in truth]
    else:
        assert "Winner" in columns
        bare = not form.replace("{}", "").strip()
        clear = (
            named == said or not (said[0].isdigit() or bare) or (said == ("1", "2") and named != ("0", "1"))
        )
        assert not clear or set(values) & {"1", "0"} or not {0.0, 1.0} <= set(truth), values


NOT_CLEAR = {
    "0 and 1": (["0", "1", "0"], "holds 0, 1"),
    "1 alone, which may be a yes": (["1", "1", "1"], "holds 1"),
    "0 beside 1 and 2": (["1", "2", "0"], "holds 0, 1, 2"),
    "signs": (["1", "-1", "1"], "holds -1, 1"),
    "yes and no": ([True, False, True], "holds false, true"),
    "a scale": (["1", "5", "3"], "holds 1, 3, 5"),
    "names of nobody": (["sora", "veo", "sora"], "which name no clip"),
}


@pytest.mark.parametrize("name", NOT_CLEAR)
def test_values_that_may_mean_either_clip_are_refused_until_said(name):
    values, why = NOT_CLEAR[name]
    first, second = clips(3)
    table = {"prompt": ["p"] * 3, "video_1": first, "video_2": second, "winner": values}
    assert why in found(table)
    kinds = list(dict.fromkeys(map(str, values)))
    columns = found(table, a_wins=kinds[:1], b_wins=kinds[1:2], tie=kinds[2:])
    meant = dict(zip(kinds, (1.0, 0.0, 0.5), strict=False))
    shares = [columns.verdicts.share_of(each.values["winner"], each) for each in records(table)]
    assert shares == [meant[str(value)] for value in values]


def test_a_name_that_is_a_place_too_is_refused():
    """Methods A and B change sides: the winner `A` may be the first clip or the method."""
    first, second = clips(2)
    table = {
        "prompt": ["p", "q"],
        "video_1": first,
        "video_2": second,
        "model_1": ["A", "B"],
        "model_2": ["B", "A"],
    }
    assert "where the other clip has that name" in found({**table, "winner": ["A", "A"]})
    same = {**table, "model_1": ["A", "A"], "model_2": ["B", "B"], "winner": ["A", "B"]}
    assert found(same).winner == "winner"  # both readings say the same


REFUSED = {
    "three clips": ({"prompt": "p", "video_1": "1.mp4", "video_2": "2.mp4", "video_3": "3.mp4", "winner": "1"},
                    "more than two clips"),
    "ranks, where less is better": ({"prompt": "p", "video_1": "1.mp4", "video_2": "2.mp4", "rank_1": 1, "rank_2": 2},
                                    "no column says which clip is the better one"),
    "who was shown first": ({"prompt": "p", "video_1": "1.mp4", "video_2": "2.mp4", "shown_first": "A"},
                            "may be said by `shown_first`"),
    "two prompts": ({"caption_en": "p", "caption_de": "q", "video_1": "1.mp4", "video_2": "2.mp4", "winner": "A"},
                    "the prompt may be `caption_en`, `caption_de`"),
    "two answers": ({"prompt": "p", "video_1": "1.mp4", "video_2": "2.mp4", "choice": "A", "preference": "B"},
                    "may be said by `choice`, `preference`"),
    "texts in place of clips": ({"prompt": "p", "response_a": "one", "response_b": "two", "winner": "a"},
                                "no two columns"),
    "thousands or decimals": ({"prompt": "p", "video": "1.mp4", "score": "1,234"}, "may be a thousand or a decimal"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_are_not_clear(name):
    row, why = REFUSED[name]
    assert why in found({key: [value] * 3 for key, value in row.items()})


BAD_OPTIONS = {
    "a column that is not there": (["--winner", "winer"], "--winner is 'winer'; did you mean `winner`"),
    "one clip of two": (["--a", "video_1"], "--a is given without --b"),
    "two ways at once": (["--chosen", "video_1", "--rejected", "video_2", "--winner", "winner"],
                         "--chosen and --winner exclude each other"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_named(name, tmp_path):
    (tmp_path / "t.csv").write_text("prompt,video_1,video_2,winner\np,1.mp4,2.mp4,A\n")
    options, message = BAD_OPTIONS[name]
    with pytest.raises(InputError, match=message):
        run_pgdpo("import", "table", tmp_path / "t.csv", tmp_path / "rows.jsonl", *options)
    with pytest.raises(InputError, match="--winner is for FORMAT table; trl reads a table with prompt"):
        run_pgdpo("import", "trl", tmp_path / "t.csv", tmp_path / "rows.jsonl", "--winner", "winner")
    assert not (tmp_path / "rows.jsonl").exists()


def test_what_is_typed_decides_and_no_field_is_lost(tmp_path):
    """Words of its own, columns in the other order, a value for a tie; the other options stay in the command shown."""
    rows = [{"id": 7, "says": "p", "x": "1.mp4", "y": "2.mp4", "q": "ja", "seed": 3, "none": None},
            {"id": 7, "says": "r", "x": "3.mp4", "y": "4.mp4", "q": "nein", "seed": 4, "none": None},
            {"id": 9, "says": "s", "x": "5.mp4", "y": "6.mp4", "q": "egal", "seed": 5, "none": None}]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    typed = "--prompt says --a y --b x --winner q --a-wins ja --b-wins nein --tie egal --name us"
    run_pgdpo("import", "table", tmp_path / "t.jsonl", tmp_path / "rows.parquet", *shlex.split(typed))
    read = [record.values for record in read_records(tmp_path / "rows.parquet")]
    assert [(row["chosen"], row["preference"], row["id"], row["source"]) for row in read] == [
        ("2.mp4", 1, "7", "us"), ("3.mp4", 1, "7#2", "us"), ("6.mp4", 0.5, "9", "us")
    ]  # fmt: skip
    kept = [{"id": row["id"], **each["source_fields"]} for row, each in zip(rows, read, strict=True)]
    assert [{"none": None, **each} for each in kept] == rows


def test_values_that_only_come_later_are_read_too(tmp_path):
    """A sorted table: its first thousand rows show one value alone."""
    values = ["Video 1"] * 1500 + ["video_2"] * 3 + ["tie", "2"]
    rows = [f"p,{n}a.mp4,{n}b.mp4,{value}" for n, value in enumerate(values)]
    (tmp_path / "t.csv").write_text("\n".join(["prompt,video_1,video_2,winner", *rows]))
    import_data(FORMATS["table"], str(tmp_path / "t.csv"), str(tmp_path / "rows.jsonl"), Options())
    read = [record.values for record in read_records(tmp_path / "rows.jsonl")]
    sides = ["ab".index(row["chosen"][-5]) if row["preference"] == 1 else "tie" for row in read]
    assert sides == [0] * 1500 + [1] * 3 + ["tie", 1]


def test_a_number_in_a_question_is_no_clips(tmp_path):
    first, second = clips(3)
    table = {"prompt": ["p"] * 3, "video_1": first, "video_2": second}
    assert "holds 0, 1" in found({**table, "q1_winner": ["0", "1", "0"]})
    columns = found({**table, "video_2_wins": ["0", "1", "0"]})
    assert [columns.verdicts.by_place(value) for value in ("0", "1", "yes", "no")] == [1, 0, 0, 1]


def test_two_of_three_clips_may_be_typed():
    three = {f"video_{side}": [f"{n}-{side}.mp4" for n in range(2)] for side in (1, 2, 3)}
    table = {"prompt": ["p", "q"], **three, "winner": ["1", "3"]}
    columns = found(table, a="video_1", b="video_3")
    assert [columns.verdicts.by_place(value) for value in ("1", "3", "2")] == [1, 0, None]


def test_what_is_typed_leaves_nothing_to_guess(tmp_path):
    first, second = clips(3)
    table = {"prompt": ["p"] * 3, "video_1": first, "video_2": second, "winner": ["A", "C", "B"]}
    columns = found(table, a_wins=["A"], b_wins=["C"])
    assert [columns.verdicts.by_place(value) for value in ("A", "C", "B", "tie")] == [1, 0, None, 0.5]


def test_a_value_that_is_none_of_them_is_an_error_of_its_row(tmp_path):
    lines = ["prompt,video_1,video_2,winner", *[f"p{n},{n}a.mp4,{n}b.mp4,{'AB'[n % 2]}" for n in range(9)]]
    (tmp_path / "t.csv").write_text("\n".join([*lines, "p,a.mp4,b.mp4,C"]))
    with pytest.raises(
        InputError, match=r"t.csv:11: `winner` is 'C'; allowed: A, B; empty where nobody judged"
    ):
        import_data(FORMATS["table"], str(tmp_path / "t.csv"), str(tmp_path / "rows.jsonl"), Options())
    assert not (tmp_path / "rows.jsonl").exists()
