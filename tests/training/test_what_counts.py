"""Which noise an expert learns and is judged at, and where an error counts: at the places where both are decided."""

from types import SimpleNamespace

import pytest
import torch

from pgdpo.config.read import load_config
from pgdpo.evaluation.errors import Errors
from pgdpo.training.costs import Costs
from pgdpo.training.noising import draw_sample
from pgdpo.training.reference_errors import _errors as reference_errors
from tests.models.families import KINDS
from tests.models.road import CPU

GIVEN = "wan 2.2 ti2v 5b i2v"  # its first latent frame is given, and no prediction
EXPERTS = [name for name in KINDS if "a14b" in name]
PAIRS = 60


@pytest.fixture
def opened(saved):
    def opened(name):
        kind = KINDS[name]
        sizes = ["evaluate.draws_per_pair=50", "train.global_batch_groups=8", "train.micro_batch_groups=2"]
        return kind.open(saved(kind.save)), load_config("quickstart.yaml", sizes)

    return opened


def batch_of(family, pairs: int, size=(9, 32, 32)) -> dict:
    shape = family.latent_shape(*size)
    conditioning = {
        name: tensor.normal_() for name, tensor in family.example_conditioning(pairs, shape).items()
    }
    conditioning["prompt_mask"] = torch.ones(conditioning["prompt"].shape[:2], dtype=torch.bool)
    numbers = torch.arange(pairs)
    keys = {"ids": list(map(str, range(pairs))), "rows": [{}] * pairs, "damage": [None] * pairs}
    drawn = {"pair_ids": numbers, "draw": numbers}
    return {
        **keys,
        **drawn,
        "latents": torch.randn(2 * pairs, *shape),
        "groups": None,
        "mask": None,
        "rows": [{}] * pairs,
        "conditioning": conditioning,
    }


@pytest.mark.parametrize("name", EXPERTS)
def test_an_expert_learns_and_is_judged_on_its_own_share_of_the_noise(name, opened):
    family, config = opened(name)
    low, high = family.sigma_range
    assert (low, high) != (0.0, 1.0)
    sigma = draw_sample(batch_of(family, PAIRS, (5, 16, 16)), config, family, CPU).sigma
    judged = [Errors.level(SimpleNamespace(config=config, family=family), draw) for draw in range(50)]
    for found in (sigma.tolist(), judged):
        assert low <= min(found) and max(found) <= high and max(found) - min(found) > 0.5 * (high - low)


def moved(tensor: torch.Tensor, frame: int) -> torch.Tensor:
    return tensor.index_add(2, torch.tensor([frame]), torch.ones_like(tensor[:, :, :1]))


def test_a_given_frame_counts_in_no_error(opened, monkeypatch):
    """Of training, of the reference's errors that are kept, and of what is judged."""
    family, config = opened(GIVEN)
    batch = batch_of(family, 2)
    mask = draw_sample(batch, config, family, CPU).mask
    assert mask.tolist() == [0, *[1] * (batch["latents"].shape[2] - 1)]

    monkeypatch.setattr("pgdpo.evaluation.errors.collate", lambda items: batch)
    judge = SimpleNamespace(
        config=config, data={(0, 0): None, (1, 0): None}, device=CPU, family=family, level=lambda draw: 0.5
    )

    def kept_and_judged(frame=None):
        predicted = torch.zeros_like(batch["latents"])
        predicted = predicted if frame is None else moved(predicted, frame)
        monkeypatch.setattr(family, "predict", lambda *told: predicted)
        kept = reference_errors(batch, config, family, family.predict, CPU)
        found = Errors.of(judge, None, [(0, 0), (1, 0)])
        return kept.sums, torch.tensor([each["video"] for each in found])

    plain, given, predicted = map(kept_and_judged, (None, 0, 1))
    for before, same, other in zip(plain, given, predicted, strict=True):
        assert torch.equal(before, same) and not torch.equal(before, other)


def test_speed_is_what_a_step_held_over_its_seconds(opened, monkeypatch):
    family, config = opened("wan 2.1 t2v")
    shapes = [family.latent_shape(5, 32, 32), family.latent_shape(9, 32, 48)]
    policy = SimpleNamespace(family=family, ranks=SimpleNamespace(device=CPU))
    pairs = SimpleNamespace(stream_shapes=[{"video": shape} for shape in shapes], group_sizes=[2, 2])
    costs = Costs(config, policy, pairs, reference_runs=True)
    monkeypatch.setattr("pgdpo.training.costs.dist.get_world_size", lambda: 1)
    monkeypatch.setattr(Costs, "_flops", [10**9, 10**10])
    monkeypatch.setattr("pgdpo.training.costs.utilisation", lambda rate, device, world: rate)
    found = costs.of([0, 0, 0, 1], 4.0)  # four micro-batches of two pairs, a pair two clips
    assert [family.tokens(shape) for shape in shapes] == [2 * 2 * 2, 3 * 2 * 3]  # by patches of 1 x 2 x 2
    assert found["pairs_per_second"] == 8 / 4
    assert found["tokens_per_second"] == 2 * 2 * (3 * 8 + 18) / 4
    assert found["mfu"] == 2 * (3 * 1e9 + 1e10) / 4
    assert found["seconds"] == 4
