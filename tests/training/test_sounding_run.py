"""Runs of a tiny LTX-2 on pairs with sound, some silent, some of another label in it: figures by part on every road."""

import json

import pytest

from tests.training.sounding_world import sounding_world
from tests.worlds import eagerly, run_pgdpo

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("eager_kernels", "undrawn")]

TRAIN = [
    {"id": "a"},
    {"id": "b", "dimensions": {"audio": 0.0, "motion": 1}},
    {"id": "c", "dimensions": {"audio": 0.5}},
    {"id": "d", "mute": True},
    {"id": "e"},
    {"id": "f", "mute": True},
]
HELD_OUT = [
    {"id": "k"},
    {"id": "l", "dimensions": {"audio": 0.2}},
    {"id": "m", "mute": True},
    {"id": "n", "dimensions": {"audio": 0.5}},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounding")
    with eagerly():
        config = sounding_world(folder, TRAIN, HELD_OUT)
        run_pgdpo("prepare", config)
    return config


def rows(config, name: str, file: str) -> list[dict]:
    """Of a run, without what a clock gave."""
    text = (config.parent / "out" / name / f"{file}.jsonl").read_text()
    clock = ("seconds", "pairs_per_second", "tokens_per_second", "peak_memory", "mfu")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in text.splitlines()]


@pytest.mark.parametrize("form", ["inside", "separate"])
def test_looks_and_evaluation_have_the_same_figures_of_each_part(made, form, capfd):
    run_pgdpo(
        "train",
        made,
        f"name={form}",
        f"objective={{name: pg_dpo, beta: 500, parts: {{audio: 0.3, form: {form}}}}}",
    )
    told = capfd.readouterr().out
    assert "dimensions: of 6 pairs audio 1 the other way, 1 a tie" in told
    assert "`motion`: no part of what the model makes" in told and "of audio" in told
    metrics, looks = rows(made, form, "metrics"), rows(made, form, "held_out")
    for row in metrics:
        assert list(row["parts"]) == ["video", "audio"]
        names = {"margin", "displacement", "implicit_accuracy", "gradient_share", "gradient_share/rejected"}
        of_own = {"loss", "saturation", "ars/alpha"}
        assert names <= set(row["parts"]["audio"]) and names - {"gradient_share"} <= set(row)
        assert (of_own <= set(row["parts"]["audio"])) == (form == "separate")
    shares = [row["parts"][part]["gradient_share"] for row in metrics for part in row["parts"]]
    assert sum(share for share in shares if share is not None) == pytest.approx(len(shares) / 2)
    first = looks[0]["parts"]  # before the first step policy and reference agree to the last bit
    assert first["video"]["margin"]["value"] == first["audio"]["margin"]["value"] == 0
    assert [first[part]["pairs"] for part in first] == [4, 2]
    run = made.parent / "out" / form
    run_pgdpo("evaluate", run, "evaluate.sampling_steps=2")
    results = json.loads((run / "results.json").read_text())
    mine, theirs = looks[-1]["parts"], results["parts"]
    for part in ("video", "audio"):
        judged = theirs[part]["displacement"]
        assert judged["pairs"] == mine[part]["pairs"]
        for name in ("margin", "excess/chosen", "excess/rejected"):
            assert mine[part][name]["value"] == pytest.approx(judged[name], rel=1e-3, abs=1e-7)
            assert mine[part][name]["value"] != 0
        assert mine[part]["displacement"]["value"] == judged["value"]
    whole = results["displacement"]
    assert looks[-1]["margin"]["value"] == pytest.approx(whole["margin"], rel=1e-3, abs=1e-7)
    wanted = (
        4 * theirs["video"]["displacement"]["margin"] + 0.3 * 2 * theirs["audio"]["displacement"]["margin"]
    ) / 4
    assert whole["margin"] == pytest.approx(
        wanted, rel=1e-6, abs=1e-12
    )  # a tie and a silent pair have no sound
    assert '<section id="parts">' in (run / "report.html").read_text()


def test_ranks_of_which_some_are_silent_log_as_one(made, ranks):
    """Micro-batches of one pair: beside a silent one on this rank there is a sounding one on the other."""
    same = (
        "objective={name: dpo, beta: 500, parts: {audio: 0.3}}",
        "evaluate.every=null",
        "train.micro_batch_groups=1",
    )
    for name, count in (("one", 1), ("two", 2)):
        ranks.train(made, {name: same}, ranks=count)
    found = [rows(made, name, "metrics") for name in ("one", "two")]
    assert [row.keys() for row in found[0]] == [row.keys() for row in found[1]]
    for alone, shared in zip(*found, strict=True):
        for part in ("video", "audio"):
            for name, value in alone["parts"][part].items():
                wanted = None if value is None else pytest.approx(value, rel=1e-3, abs=1e-6)
                assert shared["parts"][part][name] == wanted, (part, name)


def test_a_cached_reference_gives_the_numbers_of_a_live_one(made):
    same = ("objective={name: dpo, beta: 500, parts: {audio: 0.3}}", "evaluate.every=null", "train.steps=2")
    run_pgdpo("train", made, "name=live", *same, "train.reference=frozen")
    cached = ("train.reference=cached", "train.cached_draws=2")
    run_pgdpo("reference", made, *same, *cached)
    run_pgdpo("train", made, "name=cached", *same, *cached)
    for live, other in zip(rows(made, "live", "metrics"), rows(made, "cached", "metrics"), strict=True):
        assert other["loss"] == pytest.approx(live["loss"], abs=1e-5)
        for part in ("video", "audio"):
            for name in ("error/chosen", "margin", "gradient_share"):
                found, wanted = other["parts"][part][name], live["parts"][part][name]
                assert found == (None if wanted is None else pytest.approx(wanted, rel=1e-3, abs=1e-6))


def test_silent_pairs_train_as_without_sound_to_the_bit(tmp_path):
    """Losses, every figure of the picture and of the whole, and the held-out ones: the model that hears beside one that
    has no sound."""
    config = sounding_world(
        tmp_path, [{"id": name, "mute": True} for name in "abcd"], [{"id": "k", "mute": True}]
    )
    alone = (f"output_dir={tmp_path}/alone", "model.audio=false")
    for own, parts in (((), "parts: {audio: 0.3}"), (alone, "")):
        objective = f"objective={{name: pg_dpo, beta: 500, {parts}}}"
        for command in ("prepare", "train"):
            run_pgdpo(command, config, "name=run", objective, *own)
    for file in ("metrics", "held_out"):
        heard = rows(config, "run", file)
        without = [
            json.loads(line) for line in (tmp_path / f"alone/run/{file}.jsonl").read_text().splitlines()
        ]
        for one, other in zip(heard, without, strict=True):
            video = one.pop("parts")["video"]
            assert all(
                other[name] == value for name, value in video.items() if name in other and name != "pairs"
            )
            shared = {name: value for name, value in one.items() if name != "buckets"}
            assert shared == {name: other[name] for name in shared}
