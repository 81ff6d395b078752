"""A clip's own caption reaches its forward, and no other's."""

import json

import pytest
import torch

from pgdpo.config.read import load_config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.shards import prompt_key
from pgdpo.data.visits.loading import collate, for_members
from pgdpo.diffusion.draws import uniform
from pgdpo.guards.bad_steps import check_damage
from pgdpo.messages.errors import InputError
from pgdpo.rows.schema import sides_of
from tests.training import list_worlds
from tests.training.test_group_training import objective, slow_but, train
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")
ONE, OTHER = "another caption of four words", "one more caption of words"
ERRORS = ("error/chosen", "error/rejected")


def pairs(number, row):
    """The best clip against the worst."""
    best, worst = row["samples"][0]["clip"], row["samples"][-1]["clip"]
    known = {key: value for key, value in row.items() if key not in ("samples", "strength")}
    yield known | {"chosen": best, "rejected": worst}


def lists(number, row):
    yield row


@pytest.fixture
def prepared(lists_world, tmp_path, monkeypatch):
    """`prepared(make, **captions)`: a configuration of these rows, prepared again, with captions by a key of a pair or
    a sample's place."""
    manifest, there = lists_world / "out" / "toy" / f"{tmp_path.name}-train.jsonl", {}

    def again(make, **captions):
        if make not in there:
            folder = tmp_path / make.__name__ / tmp_path.name
            folder.mkdir(parents=True)
            there[make] = list_worlds.made_of(lists_world, folder, make) / "config.yaml"
        rows = [
            new for row in list_worlds.rows_of(lists_world / "out/toy/train.jsonl") for new in make(0, row)
        ]
        for row in rows:
            for key, caption in captions.items():
                where = row if key == "caption_rejected" else row["samples"][int(key[6:])]
                where["caption_rejected" if where is row else "caption"] = caption
        list_worlds.save(manifest, rows)
        run_pgdpo("prepare", there[make])
        return there[make]

    return again


def first_step(config, name, *overrides) -> list[float]:
    """Errors of chosen and rejected, on the same draws each time."""
    beta = "objective.beta=500" if "pairs" in str(config) else objective("lpo")
    row = train(config, name, beta, "train.steps=1", *overrides)[0]
    return [row[key] for key in ERRORS]


CASES = {  # rows, whose caption it is, whether chosen and rejected have another error then
    "the rejected of a pair": (pairs, "caption_rejected", [False, True]),
    "the worst of a list": (lists, "sample3", [False, True]),
    "the best of a list": (lists, "sample0", [True, False]),
    "one in between": (lists, "sample1", [False, False]),
}


def check(prepared, case):
    make, key, changes = CASES[case]
    found = [
        first_step(prepared(make, **{key: caption}), f"run-{n}") for n, caption in enumerate((ONE, OTHER))
    ]
    assert [a != b for a, b in zip(*found, strict=True)] == changes
    plain = first_step(prepared(make), "plain")
    assert [a != b for a, b in zip(found[0], plain, strict=True)] == changes


@pytest.mark.parametrize("case", slow_but("the rejected of a pair", "the best of a list", of=CASES))
def test_a_caption_changes_the_error_of_its_clip_alone(prepared, case):
    check(prepared, case)


DEFECTS = {
    "passed over": lambda self, row: {},
    "told of all": lambda self, row: {
        place: self.text(row.get("caption_rejected") or row["prompt"]) for place in range(len(sides_of(row)))
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS)
def test_that_is_seen(prepared, monkeypatch, defect):
    monkeypatch.setattr(PreparedPairs, "_captions", DEFECTS[defect])
    with pytest.raises(AssertionError):
        check(prepared, "the rejected of a pair")


def test_the_forward_is_told_each_clips_own_words(prepared):
    config = prepared(lists, sample1=ONE, sample3=OTHER)
    data = PreparedPairs(config.parent / "out/prepared/train")
    batch = collate([data[2, 0], data[5, 0]])
    told = for_members(batch["conditioning"], len(batch["latents"]))["prompt"]
    for member in range(4):
        for group, index in enumerate((2, 5)):
            words = {1: ONE, 3: OTHER}.get(member, data.rows[index]["prompt"])
            assert told[2 * member + group].equal(data.text(words)["prompt"])


def test_dropout_drops_prompt_and_captions_together(prepared):
    config = prepared(pairs, caption_rejected=ONE)
    data = PreparedPairs(config.parent / "out/prepared/train", caption_dropout=0.5, seed=3)
    empty, dropped = data.text("")["prompt"], []
    for draw in range(12):
        item, row = data[1, draw], data.rows[1]
        dropped.append(uniform(3, item["pair_id"], draw, stream="caption") < 0.5)
        told = collate([item])["conditioning"]["prompt"]
        told = told.expand(2, *told.shape[1:])
        wanted = (
            [empty, empty] if dropped[-1] else [data.text(row["prompt"])["prompt"], data.text(ONE)["prompt"]]
        )
        assert all(torch.equal(*both) for both in zip(told, wanted, strict=True))
    assert 0 < sum(dropped) < 12
    run = [
        first_step(prepared(pairs, caption_rejected=c), c[:3], "data.caption_dropout=0.999999")
        for c in (ONE, OTHER)
    ]
    assert run[0] == run[1]


@pytest.mark.parametrize(("make", "key", "named"), [
    (pairs, "caption_rejected", "pair `train-00000`, rejected"),
    (lists, "sample2", "sample 2 of group `train-00000`"),
])  # fmt: skip
def test_a_folder_of_before_is_refused_and_prepared_again_without_encoding(prepared, capfd, make, key, named):
    config = prepared(make, **{key: ONE})
    index = config.parent / "out/prepared/train/index.json"
    held = json.loads(index.read_text())
    del held["text"]["prompts"][prompt_key(ONE)]
    index.write_text(json.dumps(held))
    with pytest.raises(InputError) as caught:
        run_pgdpo("train", config)
    said = str(caught.value)
    assert named in said and ONE in said and str(index) in said and "run `pgdpo prepare` again" in said
    capfd.readouterr()
    run_pgdpo("prepare", config)
    assert "(0 encoded" in capfd.readouterr().out
    first_step(config, "mended")


def test_a_damaged_captions_file_counts_every_group_that_it_stands_in(prepared):
    config = prepared(lists, sample1=ONE)
    data = PreparedPairs(config.parent / "out/prepared/train")
    number, _ = data.index["text"]["prompts"][prompt_key(ONE)]
    data.index["text"]["files"].append({"file": "text-of-it.safetensors"})
    data.index["text"]["prompts"][prompt_key(ONE)] = [len(data.index["text"]["files"]) - 1, ""]
    data.damaged_files = {"text-of-it.safetensors": "it is cut"}
    with pytest.raises(InputError, match="8 of 8 pairs are bad"):
        check_damage(data, load_config(config, ["data.on_bad_data=skip"]))
