"""Several manifests in one run, and a held-out split that makes itself: which rows are taken, under which names."""

import json
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.config import DataConfig
from pgdpo.data.sources import is_held_out, read_rows, scan_sources, shares_of, source_names, take
from pgdpo.files.tables import writer
from pgdpo.messages.errors import InputError

pytestmark = pytest.mark.quick


def save(path, ids, prompts=("a",), **more):
    """A manifest beside empty files that stand for its clips; prompts take turns."""
    (path.parent / "clips").mkdir(parents=True, exist_ok=True)
    with writer(path) as write:
        for number, name in enumerate(ids):
            clips = {side: f"clips/{number}-{side}.mp4" for side in ("chosen", "rejected")}
            for clip in clips.values():
                (path.parent / clip).touch()
            write({"id": name, "prompt": prompts[number % len(prompts)], **clips, **more})
    return str(path)


def data_of(*sources, **more) -> DataConfig:
    return DataConfig(
        train=[each if isinstance(each, dict) else {"manifest": each} for each in sources], **more
    )


def ids(data, split="train", **options) -> list[str]:
    return [row.id for row in read_rows(data, split, **options)]


# --- manifests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["a/pairs.jsonl", "b/votes.parquet"], ["pairs", "votes"]),
        (["a/train.jsonl", "b/train.parquet"], ["a-train", "b-train"]),
        (["a/train.jsonl", "c/a/train.parquet"], ["a-train", "a-train-2"]),
        (["s3://bucket/a/train.jsonl", "https://host/x y.jsonl?v=1"], ["train", "x-y"]),
        ([{"manifest": "a/x.jsonl", "name": "train"}, "b/train.jsonl"], ["train", "train-2"]),
        ([{"manifest": "a/train.jsonl", "name": "ours"}, "b/train.jsonl"], ["ours", "b-train"]),
        (["a/train.jsonl"], []),
        ([{"manifest": "a/train.jsonl", "name": "ours"}], []),
    ],
)
def test_names(sources, names):
    data = data_of(*sources, held_out={"share": 0.1})
    assert source_names(data, "train") == source_names(data, "held_out") == names
    assert source_names(data.model_copy(update={"held_out": "held.jsonl"}), "held_out") == []


def test_shares_are_exact_and_add_up_to_one():
    thirds = [{"manifest": f"{name}.jsonl", "share": 0.333} for name in "abc"]
    assert shares_of(data_of(*thirds)) == dict.fromkeys("abc", Fraction(1, 3))
    uneven = [{"manifest": "a.jsonl", "share": 0.7}, {"manifest": "b.jsonl", "share": 0.3}]
    assert shares_of(data_of(*uneven)) == {"a": Fraction(7, 10), "b": Fraction(3, 10)}
    assert shares_of(data_of("a.jsonl", "b.jsonl")) is None
    assert shares_of(data_of({"manifest": "a.jsonl", "share": 1})) is None
    assert shares_of(DataConfig(train="a.jsonl")) is None


def test_rows_take_turns_and_lie_beside_their_own_manifest(tmp_path):
    first, second = save(tmp_path / "a/rows.jsonl", "abc"), save(tmp_path / "b/rows.parquet", "x", weight=2.0)
    rows = read_rows(data_of(first, {"manifest": second, "name": "votes"}), "train")
    assert [(row.id, row.extra["manifest_name"]) for row in rows] == [
        ("a", "a-rows"), ("x", "votes"), ("b", "a-rows"), ("c", "a-rows")
    ]  # fmt: skip
    assert rows[0].clips["chosen"] == tmp_path / "a/clips/0-chosen.mp4"
    assert rows[1].clips["chosen"] == tmp_path / "b/clips/0-chosen.mp4"
    assert rows[0].named["chosen"] != rows[1].named["chosen"]  # the rows give two files one name
    assert rows[1].extra["weight"] == 2.0


def test_a_remote_manifest_among_others(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("PGDPO_CACHE", str(tmp_path / "cache"))
    with fsspec.open("memory://sources/far.jsonl", "w") as file:
        file.write(json.dumps({"id": "far", "prompt": "a", "chosen": "0.mp4", "rejected": "1.mp4"}) + "\n")
    for clip in "01":
        with fsspec.open(f"memory://sources/{clip}.mp4", "w") as file:
            file.write(clip)
    rows = read_rows(data_of(save(tmp_path / "near.jsonl", ["near"]), "memory://sources/far.jsonl"), "train")
    assert [(row.id, row.extra["manifest_name"]) for row in rows] == [("near", "near"), ("far", "far")]
    assert rows[1].clips["chosen"].read_text() == "0"


def test_a_list_of_one_is_that_manifest(tmp_path):
    path = save(tmp_path / "rows.jsonl", "abc")
    assert read_rows(data_of({"manifest": path, "share": 1, "name": "x"}), "train") == read_rows(
        DataConfig(train=path), "train"
    )


def test_an_id_of_two_manifests_is_named_in_both(tmp_path):
    first, second = save(tmp_path / "a.jsonl", "abc"), save(tmp_path / "b.parquet", "xb")
    with pytest.raises(InputError) as refused:
        ids(data_of(first, second))
    assert re.search(r"b\.parquet, row 2: id `b` stands on .*a\.jsonl:2 already", str(refused.value))


def test_errors_and_ties_are_of_their_own_manifest(tmp_path):
    first, second = save(tmp_path / "a.jsonl", "abc"), save(tmp_path / "b.jsonl", "xy", preference=0.5)
    said = []
    with pytest.raises(InputError, match=r"b\.jsonl: all 2 rows are ties"):
        ids(data_of(first, second))
    assert ids(data_of(first, second, ties="keep"), say=said.append) == ["a", "x", "b", "y", "c"]
    with pytest.raises(InputError, match=r"gone\.jsonl: no such manifest"):
        ids(data_of(first, str(tmp_path / "gone.jsonl")))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 999), unique=True, min_size=2, max_size=40), st.integers(1, 40), st.randoms())
def test_most_takes_the_same_rows_in_any_order_and_few_others_when_rows_are_added(
    tmp_path_factory, numbers, most, rng
):
    path = tmp_path_factory.getbasetemp() / "most/rows.jsonl"

    def taken(numbers):
        return ids(data_of({"manifest": save(path, list(map(str, numbers))), "most": most}))

    found = taken(numbers)
    assert len(found) == min(most, len(numbers))
    assert found == [str(number) for number in numbers if str(number) in found]  # in their order
    shuffled = rng.sample(numbers, len(numbers))
    assert set(taken(shuffled)) == set(found)
    assert len(set(found) - set(taken([*numbers, 1000]))) <= 1


def test_most_is_said_and_an_even_sample(tmp_path):
    said = []
    path = save(tmp_path / "rows.jsonl", [f"{number:04d}" for number in range(1000)])
    found = ids(data_of({"manifest": path, "most": 200}), say=said.append)
    assert "200 of 1000 rows are taken (data.train, `most`)" in said[0]
    assert 70 < sum(int(name) < 500 for name in found) < 130  # of the first half: 100 and four deviations


# --- the split --------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["A red  ball", "a red ball", "a\tRED ball ", "Straße", "STRASSE", "ball", "", "İ", "x" * 300]
)
PROMPTS = st.lists(
    st.one_of(WORDS, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)),
    min_size=1,
    max_size=30,
)


def rows_of(prompts) -> list[dict]:
    clips = {"chosen": "0.mp4", "rejected": "1.mp4"}
    return [{"id": str(number), "prompt": prompt, **clips} for number, prompt in enumerate(prompts)]


def sides(path, prompts, share) -> dict[str, set[int]] | None:
    """Row numbers by split; None where it is refused."""
    rows = [json.dumps(row) + "\n" for row in rows_of(prompts)]
    path.write_text("".join(rows), encoding="utf-8")
    found = {}
    for split in ("train", "held_out"):
        data = DataConfig(train=str(path), held_out={"share": share})
        rows, problems = take(scan_sources(data, split, path.parent, clips_there=False), data, split)
        if problems:
            assert rows == [] and "data.held_out.share is" in problems[0].what
            return None
        found[split] = {int(row.values["id"]) for row in rows}
    return found


@settings(deadline=None, max_examples=60)
@given(PROMPTS, PROMPTS, st.floats(0.01, 0.99), st.randoms())
def test_no_prompt_stands_on_both_sides_and_added_rows_move_none(
    tmp_path_factory, prompts, added, share, rng
):
    path = tmp_path_factory.getbasetemp() / "split.jsonl"
    found = sides(path, prompts, share)
    words = [" ".join(prompt.casefold().split()) for prompt in prompts]
    held = {number for number, prompt in enumerate(prompts) if is_held_out(prompt, share)}
    if found is None:
        assert held in (set(), set(range(len(prompts))))
        return
    assert found["held_out"] == held and found["train"] == set(range(len(prompts))) - held
    assert not {words[number] for number in held} & {words[number] for number in found["train"]}
    more = sides(path, [*prompts, *added], share)
    assert {number for number in more["held_out"] if number < len(prompts)} == held
    wider = sides(path, prompts, share + 0.01 * rng.random())
    assert wider is None or held <= wider["held_out"]


@pytest.mark.parametrize(
    "other", ["Cafe\u0301  bar", "caf\u00e9\u200b bar", "\uff43afe\u0301\u00a0BAR", "ca\u00adfé bar"]
)
def test_a_prompt_has_one_side_however_unicode_writes_it(other):
    shares = [number / 50 for number in range(1, 50)]
    assert [is_held_out(other, share) for share in shares] == [
        is_held_out("café bar", share) for share in shares
    ]
    assert any(is_held_out("cafe bar", share) != is_held_out("café bar", share) for share in shares)


def test_the_share_of_rows_is_near_what_was_asked(tmp_path):
    rng = random.Random(0)
    prompts = [f"prompt {rng.randrange(2000)}" for _ in range(6000)]
    for share in (0.05, 0.3):
        found = sides(tmp_path / "rows.jsonl", prompts, share)
        assert abs(len(found["held_out"]) / 6000 - share) < 4 * (share * (1 - share) / 1900) ** 0.5


def test_both_sides_are_of_all_manifests_and_it_is_said(tmp_path):
    words = [f"prompt {number}" for number in range(20)]
    paths = [save(tmp_path / f"{name}.jsonl", [f"{name}{n}" for n in range(40)], words) for name in "ab"]
    data, said = data_of(*paths, held_out={"share": 0.3}), []
    held, train = ids(data, "held_out", say=said.append), ids(data, say=said.append)
    assert sorted(held + train) == sorted(f"{name}{n}" for name in "ab" for n in range(40))
    assert {name[0] for name in held[:2]} == {"a", "b"}  # the first held-out prompts are of both
    assert (
        len(said) == 1 and f"{len(held)} of 80 pairs are held out" in said[0] and "of 20 prompts" in said[0]
    )


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_a_split_with_an_empty_side_is_refused_with_shares_that_are_not(tmp_path, share):
    path = save(tmp_path / "rows.jsonl", "abcdef", ["one", "two", "three"])
    for split in ("train", "held_out"):
        with pytest.raises(InputError) as refused:
            ids(DataConfig(train=path, held_out={"share": share}), split)
        named = re.search(r"of 3 prompts none is (.*); allowed: from (\S+) to (\S+) with", str(refused.value))
        assert named[1] == ("held out" if share < 0.5 else "left to train on")
        for bound in named.groups()[1:]:
            assert ids(DataConfig(train=path, held_out={"share": float(bound)}), split)
    alone = save(tmp_path / "alone.jsonl", "ab", ["one"])
    with pytest.raises(InputError, match="a share that parts the prompts"):
        ids(DataConfig(train=alone, held_out={"share": share}))


def test_a_manifest_with_a_share_whose_prompts_are_all_held_out_is_refused(tmp_path):
    inside = next(f"p{n}" for n in range(99) if is_held_out(f"p{n}", 0.3))
    outside = [f"p{n}" for n in range(99) if not is_held_out(f"p{n}", 0.3)]
    paths = [save(tmp_path / "a.jsonl", "abc", outside), save(tmp_path / "b.jsonl", "x", [inside])]
    shared = [{"manifest": path, "share": 0.5} for path in paths]
    with pytest.raises(InputError, match=r"b\.jsonl: all its prompts are held out .* none is left to visit"):
        ids(data_of(*shared, held_out={"share": 0.3}))
    assert ids(data_of(*paths, held_out={"share": 0.3})) == ["a", "b", "c"]
