"""Planned bytes against the tensors that DeepSpeed's ranks and autograd really hold."""

import pytest
import torch

from pgdpo.config.read import load_config
from pgdpo.diffusion.streams import by_stream
from pgdpo.engine.policy import build_policy
from pgdpo.planning.costs.memory import Sharding, rank_memory
from pgdpo.planning.costs.trace import Activations, trace
from pgdpo.planning.plan import Planner
from tests.planning import rank_bytes

LORA = ["train.precision=bf16", "train.global_batch_groups=8"]
FULL = ["model.adapter=null", "train.reference=frozen"]
ENGINES = [
    [f"train.zero_stage={stage}", *options]
    for stage, options in ((0, FULL), (1, FULL), (2, LORA), (3, LORA), (3, FULL))
]


def test_weights_gradients_and_optimizer_are_those_of_the_engine_on_two_ranks(plan_file, ranks):
    cases = [(str(plan_file), overrides) for overrides in ENGINES]
    first, second = ranks.call(rank_bytes.measure_all, cases)
    for overrides, *both in zip(ENGINES, first, second, strict=True):
        config = load_config(plan_file, overrides)
        sharding = Sharding(config.train.zero_stage, 2, accumulates=True)
        memory = rank_memory(Planner(config).sizes, [], sharding, Activations(0, 0, 0), inputs=0)
        held = {name: max(rank[name] for rank in both) for name in first[0]}
        planned = {"weights": memory.weights, "gradients": memory.gradients, "optimizer": memory.optimizer}
        assert planned == held, overrides


def really_saved(config) -> int:
    """Bytes that autograd keeps of a real forward on the CPU: the storages handed to it, weights and inputs apart."""
    family, transformer = build_policy(config, torch.device("cpu"))
    noisy, sigma, conditioning = Planner(config).traced_pass(2).inputs()
    for made in by_stream(noisy).values():
        made.normal_()
    inputs = [*by_stream(noisy).values(), sigma.uniform_(), *conditioning.values()]
    given = {tensor.untyped_storage().data_ptr() for tensor in (*transformer.parameters(), *inputs)}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"),
    ):
        kept = family.predict(transformer, noisy, sigma, conditioning)
    assert all(made.requires_grad for made in by_stream(kept).values())
    return sum(saved.values())


@pytest.mark.parametrize("kind", ["none", "selective", "full"])
@pytest.mark.parametrize(
    "options", [["train.precision=bf16"], ["model.adapter=null"]], ids=["lora-bf16", "full-fp32"]
)
def test_activations_are_what_autograd_keeps(plan_file, kind, options):
    config = load_config(plan_file, [f"model.gradient_checkpointing={kind}", *options])
    planner = Planner(config)
    run = planner.traced_pass(2, cuda=False)
    found = planner.traced(config, run)
    assert planner.depths == {"blocks": 5}
    assert found.saved == really_saved(config)
    assert (found.saved, found.peak) == trace(planner.build(config, {}), run)
