"""What names in a table say against the first look: scores of the other clip, the worse one's name, ties elsewhere."""

import json
import shlex

import pyarrow
import pyarrow.parquet as parquet
import pytest

from pgdpo.files.tables import Record, read_records, writer
from pgdpo.messages.errors import InputError
from pgdpo.rows.importers import FORMATS, Options, import_data
from pgdpo.rows.importers.columns.told import Unclear, find
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.quick


def table(head, *rows):
    return [
        Record("t.csv", dict(zip(head.split(","), row, strict=True)), line=n) for n, row in enumerate(rows, 2)
    ]


def refused(head, *rows, **given):
    """(why the columns aren't clear, what is proposed)."""
    with pytest.raises(Unclear) as unclear:
        find(table(head, *rows), given)
    return str(unclear.value), unclear.value.guess


def shares(head, *rows, **given):
    """The share of `a` in each row, by the winner."""
    records = table(head, *rows)
    columns = find(records, given)
    return [columns.verdicts.share_of(each.values[columns.winner], each) for each in records]


def imported(tmp_path, file, content, form="table", out="rows.jsonl", options=None, **more):
    """(the rows, the summary) of an import."""
    (tmp_path / file).write_text(content)
    summary = import_data(
        FORMATS[form], str(tmp_path / file), str(tmp_path / out), options or Options(), **more
    )
    return [record.values for record in read_records(tmp_path / out)], summary


CLIPS = "prompt,video_a,video_b"
ROW = ("p", "a.mp4", "b.mp4")


@pytest.mark.parametrize("scores", ["score_a,score_b", "votes_a,votes_b", "a_rating,b_rating"])
def test_scores_go_to_the_clips_of_their_words(scores):
    row = (*ROW, 9, 1)
    for first, second in (("video_a", "video_b"), ("video_b", "video_a")):
        columns = find(table(f"{CLIPS},{scores}", row), {"a": first, "b": second})
        expected = scores.split(",") if first == "video_a" else scores.split(",")[::-1]
        assert [columns.score_a, columns.score_b] == expected


def test_scores_of_other_words_are_asked_for():
    why, guess = refused("prompt,video_0,video_1,score_1,score_2", (*ROW, 3, 1))
    assert "`score_1`, `score_2`" in why and guess["score_a"] == "COLUMN"
    why, guess = refused("prompt,video_1,video_2,score_0,score_1,score_2", (*ROW, 9, 3, 1))
    assert (guess["score_a"], guess["score_b"]) == ("score_1", "score_2")
    turned = {"a": "video_2", "b": "video_1"}
    assert (
        refused("prompt,video_1,video_2,score_left,score_right", (*ROW, 3, 1), **turned)[1]["score_a"]
        == "COLUMN"
    )


def test_names_of_the_sides_follow_the_clips():
    head, rows = f"{CLIPS},model_a,model_b,winner", [(*ROW, "wan", "ltx", "wan"), (*ROW, "ltx", "wan", "wan")]
    assert shares(head, *rows) == [1, 0]
    assert shares(head, *rows, a="video_b", b="video_a") == [0, 1]


WORSE = [
    "not_preferred",
    "least_preferred",
    "worst choice",
    "rejected_label",
    "worse",
    "dispreferred",
    "loser_side",
]


@pytest.mark.parametrize("name", WORSE)
def test_a_column_of_the_worse_clip_is_no_winner(name):
    for given in ({}, {"winner": name}):
        why, guess = refused(f"{CLIPS},{name}", (*ROW, "A"), (*ROW, "B"), **given)
        assert f"`{name}` may name the worse clip" in why
    assert (guess["a_wins"], guess["b_wins"]) == (["B"], ["A"])
    assert shares(f"{CLIPS},{name}", (*ROW, "A"), (*ROW, "B"), **guess) == [0, 1]


def test_a_truth_of_the_worse_clip_is_turned():
    _, guess = refused(f"{CLIPS},not_a_preferred", (*ROW, 1), (*ROW, 0))
    assert (guess["a_wins"], guess["b_wins"]) == (["0"], ["1"])
    assert "which name no clip" in refused(f"{CLIPS},winner", (*ROW, "!A"), (*ROW, "≠B"), (*ROW, "~A"))[0]
    assert shares(f"{CLIPS},winner,worse", (*ROW, "A", "B")) == [1]


SAYS_MORE = {"preference": "0.5", "is_tie": "True", "result": "tie", "winner": "rejected", "weight": 0.3,
             "segments": [], "caption_rejected": "q"}  # fmt: skip


@pytest.mark.parametrize("name", SAYS_MORE)
def test_chosen_and_rejected_beside_what_says_otherwise(name):
    head, row = f"prompt,chosen,rejected,{name}", ("p", "a.mp4", "b.mp4", SAYS_MORE[name])
    why, guess = refused(head, row)
    assert f"`{name}` may say of a pair" in why
    assert find(table(head, row), guess).chosen == "chosen"  # said, it is taken
    beside = f"prompt,chosen,rejected,{name}_id,chosen_score,rejected_score,fps"
    assert find(table(beside, (*row, 1, 2, 8)), {}).chosen == "chosen"


LOWER = ["fvd", "lpips", "error", "artifact", "defect", "down", "loss", "distance", "dislike"]


@pytest.mark.parametrize("name", LOWER)
def test_where_less_is_better(name):
    for head, row in (
        (f"{CLIPS},{name}_score_a,{name}_score_b", (*ROW, 1, 2)),
        (f"prompt,video,{name}_votes", ("p", "a.mp4", 2)),
    ):
        why, guess = refused(head, row)
        assert "may be the better one" in why and guess["chosen"] == guess["rejected"] == "COLUMN"
    assert "the lower" in refused(f"prompt,video,{name}", ("p", "a.mp4", 2), clip="video", score=name)[0]


def test_only_clips_of_one_prompt_are_paired_and_each_once(tmp_path):
    lines = ["prompt,video,score,group,rater", "cat,1.mp4,3,x,r1", "cat,./1.mp4,5,x,r2", "cat,2.mp4,1,x,r1"]
    lines += ["dog,3.mp4,9,x,r1", "dog,4.mp4,2,x,r1"]
    for form in ("table", "best_of_n"):
        rows, summary = imported(tmp_path, "t.csv", "\n".join(lines), form, options=Options(pairs="all"))
        found = [(row["prompt"], row["chosen"], row["rejected"], row["reward"]) for row in rows]
        assert found == [("cat", "1.mp4", "2.mp4", [4, 1]), ("dog", "3.mp4", "4.mp4", [9, 2])]
        assert [each["rater"] for each in rows[0]["source_fields"]["chosen"]] == ["r1", "r2"]
        assert summary.notes == ["1 clips were rated more than once: the mean of their scores is taken"]


def test_a_clip_is_where_its_row_says(tmp_path):
    for name in ("0.mp4", "1.mp4"):
        (tmp_path / name).touch()
    head = "prompt,video_a,video_b,winner\n"
    rows, summary = imported(tmp_path, "t.csv", f"{head}p,m3/0.mp4,m3/1.mp4,A\n")
    assert (rows[0]["chosen"], len(summary.missing)) == ("m3/0.mp4", 2)
    rows, summary = imported(tmp_path, "t.csv", f"{head}p,/gone/0.mp4,D:\\gone\\1.mp4,A\n")
    assert (rows[0]["chosen"], rows[0]["rejected"], len(summary.by_name)) == ("0.mp4", "1.mp4", 2)
    for both in ("p,/gone/x/0.mp4,/gone/y/0.mp4,A\n", "p,/gone/x/0.mp4,1.mp4,A\nq,/gone/y/0.mp4,1.mp4,A\n"):
        with pytest.raises(
            InputError, match="'/gone/x/0.mp4' and '/gone/y/0.mp4' are not there, and .*0.mp4 may be"
        ):
            imported(tmp_path, "t.csv", head + both)


TURNED = [("Video B (ours)", "Video A (baseline)", ["B", "A"]), ("clip 2 ours", "clip 1 base", ["2", "1"])]


@pytest.mark.parametrize(("first", "second", "values"), TURNED)
def test_words_in_longer_names_and_columns_the_other_way(first, second, values):
    head, given = f"prompt,{first},{second},winner", {"a": first, "b": second}
    assert shares(head, *[(*ROW, value) for value in values], **given) == [1, 0]
    for said in (["first", "second"], ["left", "right"]):
        assert "name no clip" in refused(head, *[(*ROW, value) for value in said], **given)[0]
    both = {"a": "clip 2 wan 1", "b": "clip 1 wan 2"}
    assert (
        "nothing says" in refused(f"prompt,{both['a']},{both['b']},winner", (*ROW, 1), (*ROW, 2), **both)[0]
    )


def test_thousands_among_decimals(tmp_path):
    rows = [(*ROW, "1,234", "999"), (*ROW, "1,5", "2,5")]
    with pytest.raises(ValueError, match="'1,234' of `score_a`, `score_b` may be a thousand or a decimal"):
        find(table(f"{CLIPS},score_a,score_b", *rows), {})
    assert find(table(f"{CLIPS},score_a,score_b", (*ROW, "9,125", "1,0")), {}).decimal_comma
    assert not find(table(f"{CLIPS},score_a,score_b", (*ROW, "1,5", "2")), {}).decimal_comma


@pytest.mark.parametrize(
    "name", ["prompt_category", "prompt type", "promptSource", "prompt_hash", "caption_lang"]
)
def test_what_is_about_the_prompt_is_not_it(name):
    why, guess = refused(f"{name},sentence,video_a,video_b,winner", ("x", *ROW, "A"))
    assert "no column is the prompt's" in why and guess["prompt"] == "COLUMN"


@pytest.mark.parametrize("values", [("left", "right"), ("A", "B")])
def test_a_winner_that_other_columns_may_turn(values):
    rows = [(*ROW, value, flag) for value, flag in zip(values, ("True", "False"), strict=True)]
    for name in ("swapped", "is_flipped"):
        why, guess = refused(f"{CLIPS},winner,{name}", *rows, winner="winner")
        assert f"`{name}` may turn" in why
        assert shares(f"{CLIPS},winner,{name}", *rows, **guess) == [1, 0]
    assert "a tie" in refused(f"{CLIPS},winner,is_tie", *rows)[0]


def test_sides_that_other_columns_hold():
    why, _ = refused(f"{CLIPS},left,right,winner", (*ROW, "b", "a", "left"), (*ROW, "a", "b", "left"))
    assert "`left` and `right` may say which clip `winner` means" in why


def test_a_value_means_one_thing():
    with pytest.raises(ValueError, match="--a-wins and --b-wins both are 'X': give it once"):
        find(table(f"{CLIPS},winner", (*ROW, "x")), {"a_wins": ["x"], "b_wins": ["X"]})


@pytest.mark.parametrize("form", [int, float, str])
def test_a_number_names_what_its_text_names(form):
    rows = [(*ROW, 71, 30, form(30)), (*ROW, "71", "30", str(71))]
    assert shares(f"{CLIPS},seed_a,seed_b,winner", *rows) == [0, 1]


def test_json_that_says_two_things(tmp_path):
    row = '"prompt": "p", "video_a": "a.mp4", "video_b": "b.mp4", "winner": "A"'
    for content, why in (
        (f'[{{{row}, "winner": "B"}}]', "key `winner` stands twice in one object"),
        (f'{{"x": {{{row}}}, "y": {{{row}}}}}', "an object of objects"),
    ):
        with pytest.raises(InputError, match=f"t.json: cannot be read \\(.*{why}"):
            imported(tmp_path, "t.json", content)
    assert imported(tmp_path, "t.txt", f"[ {{{row}}} ]")[0][0]["chosen"] == "a.mp4"


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.tsv", "rows", "rows.txt"])
def test_a_manifest_has_an_ending_that_is_read(name, tmp_path):
    with (
        pytest.raises(InputError, match="a manifest is written as .jsonl, .ndjson, .parquet"),
        writer(tmp_path / name),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_clips_as_datasets_stores_them(tmp_path):
    rows = [{"prompt": "p", "video_1": {"bytes": b"one", "path": None}, "video_2": {"bytes": None, "path": "two"},
             "winner": "2"}]  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    import_data(FORMATS["table"], str(tmp_path / "t.parquet"), str(tmp_path / "rows.jsonl"))
    [row] = [record.values for record in read_records(tmp_path / "rows.jsonl")]
    assert row["chosen"] == "two" and (tmp_path / row["rejected"]).read_bytes() == b"one"


def test_two_imports_have_different_ids(tmp_path):
    content = "prompt,chosen,rejected\np,a.mp4,b.mp4\n"
    ids = [
        imported(tmp_path, file, content, form, **more)[0][0]["id"]
        for form in ("table", "trl")
        for file, more in (("t.csv", {}), ("u.csv", {}), ("t.csv", {"name": "mine"}))
    ]
    assert len(set(ids)) == 5 and ids[2] == ids[5] and ids[2].startswith("mine-")  # the name is as typed
    assert imported(tmp_path, "t.csv", content)[0][0]["id"] == ids[0]


def test_a_failed_copy_leaves_no_folder(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"a")
    (tmp_path / "b.mp4").write_bytes(b"b")
    with pytest.raises(InputError, match="t.csv:3: `rejected` is empty"):
        imported(tmp_path, "t.csv", "prompt,chosen,rejected\np,a.mp4,b.mp4\nq,a.mp4,\n", copy=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "t.csv"]


def test_an_empty_prompt_is_empty_and_what_is_taken_is_said(tmp_path, capsys):
    with pytest.raises(InputError, match="t.csv:3: `prompt` is empty; .*; fill it in"):
        imported(tmp_path, "t.csv", "prompt,chosen,rejected\np,a.mp4,b.mp4\n,a.mp4,b.mp4\n")
    (tmp_path / "0.mp4").touch()
    lines = [{"prompt": "p", "clip": "/gone/0.mp4", "score": score} for score in (1, 2)]
    lines.append({"prompt": "p", "clip": "/gone/1.mp4", "score": 3})
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_pgdpo(*shlex.split(f"import table {tmp_path / 't.jsonl'} {tmp_path / 'rows.jsonl'}"))
    said = " ".join(capsys.readouterr().out.split())
    assert "1 clips were rated more than once" in said and "by their names: 1" in said
