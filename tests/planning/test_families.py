"""Every model family is planned by its protocol alone: bytes of weights and of what autograd keeps, against its own."""

import pytest
import torch

from pgdpo.config.read import load_config
from pgdpo.planning.plan import Planner
from tests.models.families import FAMILIES, KINDS
from tests.planning.test_planned_memory import really_saved
from tests.worlds import write_config


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if FAMILIES[kind.family] is kind else pytest.mark.slow)
        for name, kind in KINDS.items()
    ],
)
def test_weights_and_activations_of_a_kind(name, saved, tmp_path):
    kind = KINDS[name]
    frames, height, width = kind.size
    model = {
        "family": kind.family,
        "path": str(saved(kind.save)),
        "encoders": "pipeline",
        "adapter": None,
        **kind.keys,
    }
    data = {"num_frames": frames, "height": height, "width": width, "fps": "own"}
    file = write_config(tmp_path / "c.yaml", tmp_path / "out", tmp_path, model=model, data=data)
    config = load_config(file)
    planner = Planner(config)
    transformer = planner.family.load_transformer(dtype=torch.float32)
    assert sum(size.numel for size in planner.sizes) == sum(p.numel() for p in transformer.parameters())
    assert planner.traced(config, planner.traced_pass(2, cuda=False)).saved == really_saved(config)
