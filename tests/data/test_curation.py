"""Selection, weights and the probe on rows whose right answer is known."""

import json
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pgdpo.config import OrderRule, SelectRule, WeightRule
from pgdpo.data.curation import neighbours as module
from pgdpo.data.curation.neighbours import neighbour_entropy
from pgdpo.data.curation.order import stages
from pgdpo.data.curation.probe import auc, probe, statistics
from pgdpo.data.curation.select import score_margin, select
from pgdpo.data.curation.weight import weighted, weights
from pgdpo.data.visits.order import Order
from pgdpo.messages.errors import InputError

pytestmark = pytest.mark.usefixtures("eager_kernels")


def row(number: int, chosen: float, rejected: float, **extra) -> dict:
    scores = {"chosen": {"total": chosen}, "rejected": {"total": rejected}}
    return {"id": f"p{number}", "prompt": f"prompt {number % 3}", "scores": scores, **extra}


ROWS = [row(i, 1 + i / 10, 1.0) for i in range(11)]  # margins 0, 0.1, ... 1


def kept(rows, *rules, spread=None) -> tuple[list[int], list]:
    return select([SelectRule(**rule) for rule in rules], rows, spread=spread, seed=0)


def test_margin_keeps_the_quantiles():
    indices, (report,) = kept(ROWS, {"by": "margin", "score": "total", "low": 0.2, "high": 0.8})
    assert indices == [2, 3, 4, 5, 6, 7, 8]
    assert (report.before, report.after) == (11, 7) and "between 0.2 and 0.8" in report.why


def test_chosen_score_is_a_gate():
    assert kept(ROWS, {"by": "chosen_score", "score": "total", "least": 1.85})[0] == [9, 10]
    assert kept(ROWS, {"by": "chosen_score", "score": "total", "low": 0.5})[0] == [5, 6, 7, 8, 9, 10]


def test_rules_follow_each_other_and_nothing_left_is_an_error():
    gate, margin = (
        {"by": "chosen_score", "score": "total", "least": 1.45},
        {"by": "margin", "score": "total", "high": 0.5},
    )
    assert kept(ROWS, gate, margin)[0] == [5, 6, 7]
    with pytest.raises(InputError, match="after the rule `chosen_score` none of 11 pairs is left .*>= 9"):
        kept(ROWS, gate | {"least": 9})


def test_duplicates_by_hash():
    rows = [
        row(0, 1, 0, sha256_chosen="a", sha256_rejected="b"),
        row(3, 1, 0, sha256_chosen="a", sha256_rejected="b"),  # the same prompt and clips
        row(1, 1, 0, sha256_chosen="a", sha256_rejected="b"),  # another prompt
        row(2, 1, 0, sha256_chosen="c", sha256_rejected="c"),  # one clip twice
    ]
    indices, (report,) = kept(rows, {"by": "duplicates"})
    assert indices == [0, 2] and report.why.startswith("1 repeat") and "1 have the same clip" in report.why


def test_fifa_prefers_margin_and_rare_prompts():
    """Prompts 0 and 1 lie together, prompt 2 apart: at equal margins its pairs stay."""
    places = {"prompt 0": [0.0, 0.0], "prompt 1": [0.1, 0.0], "prompt 2": [5.0, 5.0]}
    rows = [row(i, 2, 1) for i in range(6)]
    rule = {"by": "fifa", "score": "total", "keep": 1 / 3, "neighbours": 1}
    spread = lambda prompts, k: neighbour_entropy(torch.tensor([places[p] for p in prompts]), k)  # noqa: E731
    assert kept(rows, rule, spread=spread)[0] == [2, 5]
    assert kept(ROWS, rule | {"diversity_weight": 0, "keep": 0.3})[0] == [
        8,
        9,
        10,
    ]  # no embeddings are asked for


def test_fifa_reads_text_quality():
    rows = [row(i, 2, 1, quality=float(i == 4)) for i in range(6)]
    rule = {"by": "fifa", "score": "total", "keep": 0.17, "quality": "quality", "diversity_weight": 0}
    assert kept(rows, rule)[0] == [4]


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 40),
    dimension=st.integers(1, 6),
    neighbours=st.integers(1, 6),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    near=st.sampled_from([0.0, 1e-7, 1e-4, 1.0]),
    away=st.sampled_from([0.0, 100.0]),
    blocks=st.sampled_from([(3, 2), (7, 5), (512, 1024)]),
    spare=st.sampled_from([0, 2, 16]),
    seed=st.integers(0, 999),
)
@example(7, 3, 1, 30.0, 1e-7, 0.0, (3, 2), 0, 0)
def test_neighbour_entropy_against_float64(
    count, dimension, neighbours, scale, near, away, blocks, spare, seed
):
    """Also of points that are one, nearly one, or far from the origin, which fp32 products can't tell apart."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, dimension)) * scale + away
    points = centres[rng.integers(0, 4, count)] + near * rng.normal(size=(count, dimension))
    points = torch.from_numpy(points).float()
    with mock.patch.multiple(module, ROWS=blocks[0], COLUMNS=blocks[1], SPARE=spare):
        found = neighbour_entropy(points, neighbours)
    exact = points.double().numpy()
    distances = np.sort(np.linalg.norm(exact[:, None] - exact[None], axis=-1), axis=1)
    if count == 1:
        assert found.tolist() == [0]
        return
    expected = distances[:, min(neighbours, count - 1)] ** 2
    off = 2 * (dimension + 4) * 2**-52 * 2 * (exact**2).sum(1).max()  # of products in float64, twice
    np.testing.assert_allclose((np.exp(found) - 1e-6) ** 2, expected, rtol=1e-8, atol=off + 1e-20)


@settings(deadline=None, max_examples=25)
@given(own=st.integers(1, 40), others=st.integers(1, 40), share=st.floats(0.1, 0.9))
def test_on_policy_share_is_reached_with_as_many_pairs_as_possible(own, others, share):
    rows = [row(i, 1, 0, source="self" if i < own else "web") for i in range(own + others)]
    indices, _ = kept(rows, {"by": "on_policy", "sources": ["self"], "share": share})
    left = sum(index < own for index in indices)
    wanted = share * len(indices)
    assert abs(left - wanted) <= 1
    assert left == own or len(indices) - left == others  # the smaller side is kept whole


def test_source_names_what_there_is():
    rows = [row(0, 1, 0, source="a"), row(1, 1, 0, source="b")]
    assert kept(rows, {"by": "source", "sources": ["b"]})[0] == [1]
    with pytest.raises(InputError, match="names c: the rows' sources are a, b"):
        kept(rows, {"by": "source", "sources": ["c"]})


def test_a_row_without_the_score_is_named():
    rows = [*ROWS, {"id": "odd", "prompt": "x", "scores": {"chosen": {"motion": 1}}}]
    with pytest.raises(
        InputError, match="`margin` reads scores.chosen.total of every row: pair `odd` has motion"
    ):
        kept(rows, {"by": "margin", "score": "total"})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"by": "margin"}, "`by: margin` needs score"),
        ({"by": "duplicates", "keep": 0.3}, "takes nothing else, not keep"),
        ({"by": "margin", "score": "x", "low": 0.9, "high": 0.1}, "low must be below high"),
        ({"by": "on_policy"}, "`by: on_policy` needs sources"),
        ({"by": "beauty"}, "'duplicates', 'chosen_score'"),
    ],
)
def test_rules_are_checked(rule, message):
    with pytest.raises(ValidationError, match=message):
        SelectRule(**rule)


def test_a_resolved_rule_is_read_again():
    rule = SelectRule(by="margin", score="total", low=0.5)
    assert SelectRule.model_validate(rule.model_dump()) == rule


def test_gap_frequency_is_the_share_of_pairs_in_the_same_bin_and_no_weight():
    rng = np.random.default_rng(7)
    margins = rng.normal(size=200)
    rule = WeightRule(by="gap_frequency", score="total", bins=7)
    found, _ = weighted(rule, [row(i, margin, 0.0, weight=2.0) for i, margin in enumerate(margins)])
    width = (margins.max() - margins.min()) / 7
    place = np.minimum((margins - margins.min()) // width, 6)
    wanted = [(place == own).mean() for own in place]
    assert [each["gap_frequency"] for each in found] == pytest.approx(wanted)
    assert {each["weight"] for each in found} == {2.0}
    with pytest.raises(ValueError, match="takes no power"):
        WeightRule(by="gap_frequency", score="total", power=2.0)


def test_rarity_weights_go_with_the_inverse_share():
    rows = [row(i, 1.05, 1) for i in range(9)] + [row(9, 2, 1, weight=3.0)]
    factors, why = weights(WeightRule(by="rarity", score="total", bins=2, power=1.0), rows)
    assert factors[9] / factors[0] == pytest.approx(3 * 9)
    assert np.mean([*factors[:9], factors[9] / 3]) == pytest.approx(1)
    assert "2 bins" in why


def test_a_curriculum_visits_easy_pairs_first_and_every_pair_once():
    margin = np.random.default_rng(0).permutation(40) / 10
    rows = [row(i, 1 + m, 1.0) for i, m in enumerate(margin)]
    chunk, why = stages(OrderRule(by="margin", score="total", chunks=4), rows)
    assert np.bincount(chunk).tolist() == [10, 10, 10, 10] and "4 chunks from easy to hard" in why
    for epoch in range(2):
        order = Order([list(range(40))], micro_batch=5, seed=1, stages=chunk.tolist())
        visited = [pair for number in range(8 * epoch, 8 * epoch + 8) for pair in order.micro_batch(number)]
        assert sorted(index for index, _ in visited) == list(range(40)) and {v for _, v in visited} == {epoch}
        means = [np.mean([margin[i] for i, _ in visited[10 * k : 10 * k + 10]]) for k in range(4)]
        assert means == sorted(means, reverse=True)
        assert [i for i, _ in visited[:10]] != sorted(i for i, _ in visited[:10])  # shuffled within a chunk


def test_an_order_by_implicit_rewards_reads_an_earlier_run(config_file, tmp_path):
    from tests.worlds import run_pgdpo

    run_pgdpo("train", config_file, "name=first")
    run_pgdpo("curate", config_file, "name=first", "--implicit-rewards")
    file = config_file.parent / "out" / "first" / "implicit_rewards.json"
    margins = json.loads(file.read_text())["margin"]
    assert len(margins) == 12 and len(set(margins.values())) == 12
    run_pgdpo(
        "train", config_file, "name=second", f"data.order={{by: implicit_reward, file: {file}, chunks: 3}}"
    )
    events = (config_file.parent / "out" / "second" / "events.jsonl").read_text()
    assert "3 chunks from easy to hard by implicit_reward" in events
    file.write_text(json.dumps({"margin": {"other": 1.0}}))
    with pytest.raises(InputError, match="has no margin of pair .*12 of 12 lack one"):
        run_pgdpo("train", config_file, "name=third", f"data.order={{by: implicit_reward, file: {file}}}")


def clips(shift: float, count: int = 60) -> tuple[list[dict], list[dict]]:
    """Statistics of random latents; the chosen ones are `shift` brighter."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, count, 3, 4, 6, 6, generator=generator)
    latents[0] += shift
    return tuple([statistics(clip) for clip in side] for side in latents)


def test_the_probe_sees_a_cue_and_names_it():
    found = probe(*clips(0.5))
    assert found.auc > 0.98 and "superficial cues" in str(found)
    assert found.telling[0][0].startswith("mean of channel")


def test_the_probe_sees_nothing_where_nothing_is():
    """Without held-out folds 9 statistics would tell 60 random pairs apart at about 0.65."""
    found = probe(*clips(0.0))
    assert abs(found.auc - 0.5) < 0.1 and "superficial" not in str(found)


def test_auc_counts_ties_half():
    assert auc(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == (0.5 + 3) / 4


def test_the_command_and_the_run_that_follows(config_file, tmp_path):
    from tests.worlds import metrics, run_pgdpo

    rules = "data.select=[{by: margin, score: total, low: 0.5}]"
    weight = "data.weight={by: rarity, score: total, bins: 2}"
    out = tmp_path / "found.json"
    run_pgdpo("curate", config_file, rules, weight, "--out", out)
    found = json.loads(out.read_text())
    assert found["pairs"] == 6 and found["prepared"] == 12 and 0 <= found["probe"]["auc"] <= 1
    assert [kept["by"] for kept in found["curation"]] == ["margin", "weight: rarity"]
    run_pgdpo("train", config_file, "name=all")
    run_pgdpo("train", config_file, "name=half", rules, weight)
    output = config_file.parent / "out"
    assert metrics(output, "all")[0]["loss"] != metrics(output, "half")[0]["loss"]  # ln 2 times the weights
    events = (output / "half" / "events.jsonl").read_text()
    assert "margin: 6 of 12 pairs stay" in events
    with pytest.raises(
        InputError, match=r"its data.select is \[{.*says \[\]"
    ):  # another selection is another run
        run_pgdpo("train", config_file, "name=half", "--resume", "train.steps=5", "data.select=[]")
    run_pgdpo("train", config_file, "name=half", "--resume", "train.steps=5")
    resumed = [json.loads(line) for line in (output / "half" / "events.jsonl").read_text().splitlines()]
    assert [row["step"] for row in resumed if row["event"] == "selection"] == [0, 0, 4, 4]


def listed(number: int, *samples: dict, **extra) -> dict:
    hashes = {
        f"sha256_sample{place}": sample.pop("hash", f"{number}{place}")
        for place, sample in enumerate(samples)
    }
    return {"id": f"g{number}", "prompt": "a", "samples": list(samples), **hashes, **extra}


def test_of_groups_the_best_stands_against_the_worst():
    """By rank where there is one, by scores of their own or by name; ends decide margins, gates and duplicates."""
    rows = [
        listed(
            0,
            {"score": 1.0, "scores": {"total": 5}},
            {"score": 4.0, "scores": {"total": 2}},
            {"score": 2.5, "scores": {"total": 0}},
        ),
        listed(
            1,
            {"score": 9.0, "rank": 2, "scores": {"total": 1}},
            {"score": 8.5, "rank": 0, "scores": {"total": 3}},
        ),
        listed(
            2,
            {"score": 1.0, "scores": {"total": 0}, "hash": "x"},
            {"score": 1.0, "scores": {"total": 0}, "hash": "x"},
        ),
    ]
    margins = {"score": [3.0, -0.5, 0.0], "reward_margin": [3.0, -0.5, 0.0], "total": [-3, 2, 0]}
    for name, wanted in margins.items():
        assert score_margin(rows, name, needed_by="it").tolist() == wanted
    assert kept(rows, {"by": "chosen_score", "score": "total", "least": 2})[0] == [0, 1]
    assert kept(rows, {"by": "duplicates"})[0] == [0, 1]
    with pytest.raises(InputError, match="`g0` has score, total"):
        kept(rows, {"by": "margin", "score": "motion"})
