"""Runs on several manifests in fixed shares, and on what a split that makes itself leaves."""

import json
import re

import pytest
import yaml

from pgdpo.checking import run_check
from pgdpo.checkpoints.runs import run_config
from pgdpo.config.read import load_config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.sources import is_held_out
from pgdpo.messages.errors import InputError
from pgdpo.training.opening import compare_prepared
from tests.worlds import losses, metrics, run_pgdpo, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")

SHARE = 0.3
STEPS = ["train.steps=4", "train.checkpoint_every=4", "train.learning_rate=1e-2"]


def refused(*arguments) -> str:
    with pytest.raises(InputError) as caught:
        run_pgdpo(*arguments)
    return str(caught.value)


@pytest.fixture(scope="module")
def rows(world):
    """The toy's 12 training rows."""
    return [json.loads(line) for line in (world / "out/toy/train.jsonl").read_text().splitlines()]


@pytest.fixture
def mixed(world, rows, tmp_path):
    """A configuration of two manifests, of 9 and of 3 pairs in equal shares, prepared with a split."""
    for name, part in (("a", rows[:9]), ("b", rows[9:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clips").symlink_to(world / "out/toy/clips")
        save(tmp_path / name / "rows.jsonl", part)
    sources = [
        {"manifest": str(tmp_path / "a/rows.jsonl"), "share": 0.75, "name": "large"},
        {"manifest": str(tmp_path / "b/rows.jsonl"), "share": 0.25},
    ]
    config = write_config(
        tmp_path / "config.yaml",
        tmp_path / "out",
        world / "tiny_wan",
        data={"train": sources, "held_out": {"share": SHARE}},
        train={"cached_draws": 2, "checkpoint_every": 4},
        evaluate={"num_prompts": 1, "draws_per_pair": 1},
    )
    run_pgdpo("prepare", config)
    return config


def save(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit(config, **data):
    """The configuration with other keys of `data`."""
    raw = yaml.safe_load(config.read_text())
    raw["data"] |= data
    config.write_text(yaml.safe_dump(raw))


def differing(config, *overrides) -> list:
    return compare_prepared(load_config(config, list(overrides)), "train").found


def prepared(config, split="train") -> dict[str, dict]:
    rows = PreparedPairs(config.parent / "out" / "prepared" / split).rows
    return {row["id"]: row for row in rows}


def test_the_shares_stand_in_the_metrics_and_one_rank_is_two(mixed, ranks):
    run = ["train", mixed, "train.deterministic=true", "train.micro_batch_groups=1", *STEPS]
    for job in [
        ranks.start([[*run, f"name={name}"]], ranks=count) for name, count in (("one", 1), ("two", 2))
    ]:
        job.succeed(240)
    one, two = (metrics(mixed.parent / "out", name) for name in ("one", "two"))
    assert [row["loss"] for row in one] == [row["loss"] for row in two] and len(one) == 4
    for row, other in zip(one, two, strict=True):
        assert row["sources"] == other["sources"]
        assert {name: part["pairs"] for name, part in row["sources"].items()} == {"large": 3, "b-rows": 1}
        for figure in ("loss", "margin", "displacement", "implicit_accuracy"):
            parts = [part["pairs"] * part[figure] for part in row["sources"].values()]
            assert sum(parts) / 4 == pytest.approx(row[figure], rel=1e-12, abs=1e-15)


def test_a_cached_reference_has_the_errors_of_what_comes_often(mixed):
    """The small manifest's pairs come far beyond the draws that are cached."""
    run_pgdpo("reference", mixed)
    run_pgdpo("train", mixed, "name=live", *STEPS, "train.steps=2")
    run_pgdpo("train", mixed, "name=cached", *STEPS, "train.reference=cached")
    out = mixed.parent / "out"
    assert losses(out, "cached")[:2] == pytest.approx(losses(out, "live"), rel=1e-6)
    assert len(losses(out, "cached")) == 4


def test_a_list_of_one_manifest_is_the_path_to_the_last_bit(mixed):
    path = str(mixed.parent / "a/rows.jsonl")
    edit(mixed, held_out=None, train=path)
    runs = {"path": [], "list": [f"data.train=[{{manifest: {path}, share: 1, name: x}}]"]}
    for name, overrides in runs.items():
        run_pgdpo("prepare", mixed, f"output_dir={mixed.parent / name}", *overrides)
        run_pgdpo("train", mixed, f"output_dir={mixed.parent / name}", "train.steps=2", *overrides)
    first, second = (mixed.parent / name for name in runs)
    assert (first / "prepared/train/index.json").read_text() == (
        second / "prepared/train/index.json"
    ).read_text()
    assert losses(first, "dpo") == losses(second, "dpo") and "sources" not in metrics(second, "dpo")[0]
    identity = [json.loads((out / "dpo/run.json").read_text()) for out in (first, second)]
    assert identity[0]["rows_hash"] == identity[1]["rows_hash"]
    assert not differing(mixed, f"output_dir={second}")  # by the path, from the list's


def test_the_held_out_prompts_alone_are_judged_and_shown_by_manifest(mixed, rows, capfd):
    train, held = prepared(mixed), prepared(mixed, "held_out")
    assert train.keys() | held.keys() == {row["id"] for row in rows} and not train.keys() & held.keys()
    assert all(is_held_out(row["prompt"], SHARE) for row in held.values())
    assert not any(is_held_out(row["prompt"], SHARE) for row in train.values())
    names = {row["id"]: "large" if number < 9 else "b-rows" for number, row in enumerate(rows)}
    assert all(row["manifest_name"] == names[name] for name, row in (train | held).items())
    run_pgdpo("train", mixed, *STEPS)
    assert re.search(r"b-rows: 0.25 of the visits, \d pairs, each visited", capfd.readouterr().out)
    run_pgdpo("evaluate", mixed)
    results = json.loads((mixed.parent / "out/dpo/results.json").read_text())
    assert results["displacement"]["pairs"] == len(held)
    assert {sample["prompt"] for sample in results["samples"]} <= {row["prompt"] for row in held.values()}
    assert results["sources"].keys() == {names[name] for name in held}
    assert sum(part["pairs"] for part in results["sources"].values()) == len(held)
    page = (mixed.parent / "out/dpo/report.html").read_text()
    section = page.split('<section id="sources">')[1].split("</section>")[0]
    assert all(f'<th scope="row">{name}</th>' in section for name in ("large", "b-rows"))
    assert "12 <span" in section and "75%" in section and "Held-out accuracy" in section
    run_pgdpo("export", mixed)
    assert "(0.75 of the visits)" in (mixed.parent / "out/dpo/export/README.md").read_text()


def test_a_run_keeps_its_split_and_its_shares(mixed, world):
    run_pgdpo("train", mixed, *STEPS)
    run, toy = mixed.parent / "out/dpo", str(world / "out/toy/held_out.jsonl")
    for command, options in (("evaluate", ()), ("train", ("--resume",))):
        text = refused(command, mixed, "data.held_out={share: 0.6}", *options)
        assert "its data.held_out.share is 0.3" in text and "says 0.6" in text
        other = yaml.safe_load(mixed.read_text())["data"]["train"]
        other[0]["share"], other[1]["share"] = 0.5, 0.5
        assert "its data.train is" in refused(command, mixed, f"data.train={json.dumps(other)}", *options)
    # A manifest to judge by is no other split: it is taken. What would be trained on then is another thing.
    given = f"data.held_out={toy}"
    assert run_config(run, [given]).data.held_out == toy
    apart = f"data.prepared={mixed.parent / 'apart'}"
    run_pgdpo("prepare", mixed, given, apart)
    run_pgdpo("evaluate", run, given, apart)
    assert json.loads((run / "results.json").read_text())["displacement"]["pairs"] == 4
    assert "data.held_out parts data.train not at all" in refused(
        "train", mixed, "--resume", given, "train.steps=5"
    )
    assert "rows_hash" in refused("train", mixed, "--resume", given, apart, "train.steps=5")
    # The other way round: a run without a split was trained on what the split would judge it by.
    run_pgdpo("train", mixed, "name=whole", "data.held_out=null", apart, "train.steps=1")
    whole = run.with_name("whole")
    assert "its data.held_out.share is" in refused("evaluate", whole, "data.held_out.share=0.3", apart)
    edit(mixed, held_out={"share": SHARE})
    assert run_config(mixed, ["name=whole", apart]).data.held_out is None  # the file's gives way
    run_pgdpo("train", mixed, "--resume", "train.steps=5")
    assert len(losses(run.parent, "dpo")) == 5


def test_prepared_data_know_of_manifests_and_split(mixed, rows):
    """What differs is named; what is the same in other words is not."""
    raw = yaml.safe_load(mixed.read_text())["data"]["train"]
    assert "data.held_out parts data.train by {'share': 0.6" in refused(
        "train", mixed, "data.held_out={share: 0.6}"
    )
    assert "data.held_out parts data.train not at all" in refused("train", mixed, "data.held_out=null")
    swapped = f"data.train={json.dumps(raw[::-1])}"
    assert "order of rows: 1" in refused("train", mixed, swapped)
    renamed = json.dumps([raw[0] | {"name": "big"}, raw[1]])
    text = refused("train", mixed, f"data.train={renamed}")
    assert "`manifest_name` is 'big', prepared was 'large'" in text and "encodes nothing" in text
    dropped = refused("train", mixed, f"data.train={json.dumps([raw[0] | {'most': 1}, raw[1]])}")
    assert "row removed" in dropped
    shares = json.dumps([raw[0] | {"share": 0.5}, raw[1] | {"share": 0.5}])
    assert not differing(mixed, f"data.train={shares}")
    first = next(row for row in rows[:9] if not is_held_out(row["prompt"], SHARE))
    save(mixed.parent / "a/rows.jsonl", [*rows[:9], {**first, "id": "added"}])
    text = refused("train", mixed, "name=another")
    assert "pair `added` was not prepared" in text and "a/rows.jsonl:10" in text
    run_pgdpo("prepare", mixed)
    assert "added" in prepared(mixed) and not differing(mixed)


def test_a_split_and_manifests_are_checked_as_they_are_prepared(mixed, rows):
    found = run_check(str(mixed))
    assert found.exit_code == 0 and {split: len(part) for split, part in found.rows.items()} == {
        "train": len(prepared(mixed)),
        "held_out": len(prepared(mixed, "held_out")),
    }
    raw = yaml.safe_load(mixed.read_text())["data"]["train"]
    uneven = json.dumps([raw[0] | {"share": 0.05}, raw[1] | {"share": 0.95}])
    warned = [str(each) for each in run_check(str(mixed), [f"data.train={uneven}", "name=x"]).problems]
    assert any(
        "times as often as those of `large`" in each and "pairs of `b-rows`" in each for each in warned
    )
    save(mixed.parent / "b/rows.jsonl", [*rows[9:11], rows[3] | {"chosen": "clips/gone.mp4"}, rows[2]])
    found = run_check(str(mixed), ["name=x"])
    texts = [str(each) for each in found.problems]
    assert any(
        re.search(r"b/rows\.jsonl:3: `chosen` of pair .* no file at .*b/clips/gone", each) for each in texts
    )
    assert any(
        re.search(r"b/rows\.jsonl:4: id .* stands on \S*a/rows\.jsonl:3 already", each) for each in texts
    )
    with pytest.raises(InputError, match="--fix mends one manifest, and data.train names 2"):
        run_check(str(mixed), ["name=x"], fix=str(mixed.parent / "a/mended.jsonl"))


def test_a_selection_that_leaves_a_manifest_without_pairs_is_refused(mixed):
    for number, name in enumerate("ab"):
        path = mixed.parent / name / "rows.jsonl"
        part = [json.loads(line) for line in path.read_text().splitlines()]
        save(path, [row | {"source": f"s{number}"} for row in part])
    run_pgdpo("prepare", mixed)
    text = refused("train", mixed, "data.select=[{by: source, sources: [s0]}]")
    assert "no pair of the manifest `b-rows` is left to train on" in text and "data.select" in text
    run_pgdpo(
        "train",
        mixed,
        "data.order={by: margin, score: total, chunks: 2}",
        "data.weight={by: rarity, score: total}",
    )
