"""Every way to spread a run over ranks gives one rank's losses and gradients; what cannot be spread is refused."""

import itertools
import math

import numpy as np
import pytest
import torch

from pgdpo.config.read import load_config
from pgdpo.engine.parallel import arrange_ranks, check_sequence_parallel
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.families.ltx2 import LTX2
from pgdpo.planning.costs.step import sent_by_a_rank
from tests.engine import shared_tokens, two_streams
from tests.models.families import FAMILIES, KINDS
from tests.worlds import losses, metrics, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")

STEPS = "train.steps=5"
FULL = ("model.adapter=null", "train.learning_rate=1e-5")
SHARED = "train.sequence_parallel=2"
SMALL = "train.micro_batch_groups=1"

# name -> (what it must equal, its overrides)
TWO_RANKS = {
    **{f"zero{stage}": ("one", [f"train.zero_stage={stage}"]) for stage in range(4)},
    "accumulated": ("one", [SMALL]),
    "shared0": ("one", [SHARED]),
    "shared3": ("one", [SHARED, "train.zero_stage=3", "model.gradient_checkpointing=selective"]),
    "offloaded": (
        "full",
        [*FULL, "train.zero_stage=3", "train.offload_optimizer=cpu", "train.offload_parameters=cpu"],
    ),
    "shared_full": ("full", [*FULL, SHARED, "train.zero_stage=2"]),
    "shared_kto": ("kto", ["objective={name: kto, beta: 500}", SHARED]),
}
ONE_RANK = {"one": [], "full": [*FULL], "kto": ["objective={name: kto, beta: 500}"]}


@pytest.fixture
def output(config_file):
    """Runs of five steps on one rank, under the names of `ONE_RANK`."""
    for name, overrides in ONE_RANK.items():
        run_pgdpo("train", config_file, f"name={name}", STEPS, *overrides)
    return config_file.parent / "out"


def off(output, name: str, other: str, key: str) -> float:
    first, second = (np.array([row[key] for row in metrics(output, run)]) for run in (name, other))
    assert len(first) == len(second) == 5 and len(set(second)) == 5
    return float(np.abs((first - second) / second).max())


def compare(output, runs) -> None:
    worst = {name: off(output, name, other, "loss") for name, (other, _) in runs.items()}
    assert max(worst.values()) <= 1e-5, worst
    norms = {name: off(output, name, other, "gradient_norm") for name, (other, _) in runs.items()}
    assert max(norms.values()) <= 1e-4, norms
    for name, (other, _) in runs.items():
        rows = metrics(output, name)
        pairs = [{bucket: row["pairs"] for bucket, row in step["buckets"].items()} for step in rows]
        assert pairs == [
            {bucket: row["pairs"] for bucket, row in step["buckets"].items()}
            for step in metrics(output, other)
        ]
        assert (
            losses(output, name)[0] == float(torch.tensor(math.log(2), dtype=torch.float32)) or "kto" in name
        )


@pytest.mark.timeout(900)
def test_two_ranks_are_one(config_file, ranks):
    """The ways that differ most from one another; all of them, and in Triton's interpreter, with -m slow."""
    run_pgdpo("train", config_file, STEPS, "name=one")
    runs = {name: TWO_RANKS[name] for name in ("zero2", "zero3", "accumulated", "shared3")}
    ranks.train(config_file, {name: [STEPS, *overrides] for name, (_, overrides) in runs.items()})
    compare(config_file.parent / "out", runs)


@pytest.mark.slow
@pytest.mark.timeout(900)  # many runs, minutes where others use the cores too
def test_two_ranks_are_one_however_they_share_the_work(config_file, output, ranks):
    """ZeRO 0 to 3, accumulation, offload, sequence parallelism: losses within 1e-5, gradient norms within 1e-4."""
    runs = {name: [STEPS, *overrides] for name, (_, overrides) in TWO_RANKS.items()}
    ranks.train(config_file, runs, interpreted=True)
    compare(output, TWO_RANKS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_groups_of_two_ranks_are_one_rank(config_file, output, ranks):
    runs = {
        "four0": ("one", [SHARED, SMALL]),
        "four3": ("one", [SHARED, SMALL, "train.zero_stage=3", "train.group_batching=split"]),
        "four_full": ("full", [*FULL, SHARED, SMALL, "train.zero_stage=1"]),
        "four_kto": ("kto", ["objective={name: kto, beta: 500}", SHARED, SMALL]),
    }
    named = {name: [STEPS, *overrides] for name, (_, overrides) in runs.items()}
    ranks.train(config_file, named, ranks=4, interpreted=True)
    compare(output, runs)


FIRST = [name for name, kind in KINDS.items() if FAMILIES[kind.family] is kind]
HELD = itertools.cycle(shared_tokens.HELD)
CASES = [pytest.param([(name, "selective") for name in FIRST], id="one of each")]
CASES += [pytest.param([(name, next(HELD))], id=name, marks=pytest.mark.slow) for name in KINDS]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("cases", CASES)
def test_two_ranks_that_share_tokens_have_one_ranks_losses_and_gradients(cases, saved, ranks):
    """Every kind, without a trainer: joint and cross-attention with masks, tokens that do not divide, checkpointing,
    compiled blocks, the patched blocks of the fused ops."""
    placed = [(name, str(saved(KINDS[name].save)), held) for name, held in cases]
    found, _ = ranks.call(shared_tokens.measure, placed, timeout=800)
    for case, off_by in found.items():
        assert all(0.4 < share < 0.6 or share == 1 for share in off_by["share"].values()), (case, off_by)
        assert off_by["learned"] > 0.01, (case, off_by)
        assert max(off_by["loss"], off_by["prediction"]) <= 1e-5 >= off_by["gradient"] / 10, (case, off_by)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("names", "count"),
    [
        (("gated", "one"), 2),
        pytest.param(tuple(two_streams.CASES), 2, marks=pytest.mark.slow),
        pytest.param(("later", "fused", "one"), 4, marks=pytest.mark.slow),
    ],
    ids=["some", "all", "four ranks"],
)
def test_ranks_that_share_picture_and_sound_have_one_ranks_losses_and_gradients(names, count, ranks):
    """Both rotary forms, gates, given frames, more sound than picture and less; sound that is too short to share, or
    that nobody listens to; checkpointed, compiled, fused."""
    found, *_ = ranks.call(two_streams.measure, list(names), timeout=800, ranks=count)
    for case, off_by in found.items():
        video, sound = two_streams.tokens(two_streams.CASES[case].size)
        tokens = {"video": video, "audio": sound} if sound >= count else {"video": video}
        shares = {name: -(-number // count) / number for name, number in tokens.items()}
        assert off_by["share"] == {"audio": 1, **shares}, (case, off_by)  # of the first rank
        if len(tokens) == 2 and not two_streams.CASES[case].called.get("isolated"):
            planned = sent_by_a_rank(LTX2.sharing, tokens, two_streams.WIDTHS, 1, count)
            assert off_by["sent"] == pytest.approx(planned), case
        assert off_by["learned"] > 0.01, (case, off_by)
        assert max(off_by["loss"], off_by["prediction"]) <= 1e-5 >= off_by["gradient"] / 10, (case, off_by)


def test_ranks_that_the_degree_does_not_divide():
    from pgdpo.engine.engine import start_distributed

    with pytest.raises(InputError, match=r"sequence_parallel is 2 and 1 rank\(s\) run: .* or set it to 1"):
        arrange_ranks(2, start_distributed())


def refused(config_file, *overrides, shape=(48, 4, 4, 4)) -> str:
    config = load_config(config_file, list(overrides))
    with pytest.raises(InputError) as caught:
        check_sequence_parallel(config, open_family(config.model), shape)
    return str(caught.value)


def test_what_a_sequence_group_cannot_share(config_file):
    assert "it must divide the 2 attention heads" in refused(config_file, "train.sequence_parallel=3")
    few = refused(config_file, SHARED, shape=(48, 1, 2, 2))
    assert "a clip has 1 tokens (data.num_frames, height and width decide), fewer than ranks" in few
