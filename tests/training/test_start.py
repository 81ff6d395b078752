"""Runs that start from weights of an earlier one: SFT first, then preferences against it; a merged model trained on."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pgdpo.checking import run_check
from pgdpo.checkpoints.runs import open_run
from pgdpo.config.read import load_config
from pgdpo.evaluation.evaluate import evaluate, implicit_rewards
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.adapters.adapter import adapter_state
from pgdpo.planning.plan import Planner
from tests.worlds import eagerly, losses, metrics, run_pgdpo, write_config

LN2 = float(torch.tensor(math.log(2), dtype=torch.float32))
ONE = ("train.steps=1",)
LORA = "pytorch_lora_weights.safetensors"
pytestmark = pytest.mark.usefixtures("eager_kernels")


@pytest.fixture(scope="module")
def sft(world, tmp_path_factory):
    """export/ of a run of two steps: the LoRA, the same under ComfyUI's names, and merged."""
    folder = tmp_path_factory.mktemp("sft")
    with eagerly():
        (folder / "out").mkdir()
        (folder / "out/prepared").symlink_to(world / "out/prepared")
        config = write_config(
            folder / "config.yaml", folder / "out", world / "tiny_wan", objective={"name": "sft"}
        )
        run_pgdpo("train", config, "train.steps=2", "train.learning_rate=1e-2")
        formats = [f"--format={name}" for name in ("diffusers", "comfyui", "merged")]
        run_pgdpo("export", config, *formats)
    return folder / "out/sft/export"


def train(config_file, name, *overrides, options=()):
    run_pgdpo("train", config_file, *options, f"name={name}", *overrides)
    return metrics(config_file.parent / "out", name)


def started(config_file, *overrides):
    """A run of one step, not begun."""
    from pgdpo.training.trainer import Trainer

    return Trainer(load_config(str(config_file), [*ONE, *overrides]))


@torch.no_grad()
def predicted(transformer, inputs):
    device = next(transformer.parameters()).device
    return transformer(**{name: x.to(device) for name, x in inputs.items()}, return_dict=False)[0].cpu()


def lora_of(folder):
    return {k.removeprefix("transformer."): t for k, t in load_file(folder / LORA).items()}


@pytest.mark.parametrize("mode", ["adapter", "frozen", "cached", "ema", "synced"])
def test_the_first_margin_against_the_lora_that_it_starts_from_is_exactly_0(config_file, sft, mode):
    start = (f"model.adapter.init={sft}", f"train.reference={mode}", "train.cached_draws=1")
    if mode == "cached":
        run_pgdpo("reference", config_file, *start)
    (first,) = train(config_file, "run", *start, *ONE)
    assert (
        first["margin"] == first["excess/chosen"] == first["excess/rejected"] == 0.0 and first["loss"] == LN2
    )
    if mode == "cached":
        with pytest.raises(InputError, match="`reference LoRA`: found .*, wanted None"):
            train(config_file, "base", *start, "model.adapter.reference=base", *ONE)
    else:
        (first,) = train(config_file, "base", *start, "model.adapter.reference=base", *ONE)
        assert first["margin"] != 0.0 and first["loss"] != LN2


def test_another_lora_is_another_reference_and_the_base_is_told_from_neither(config_file, sft):
    """Errors against the bare model are the same whatever the policy starts from; against the LoRA its own."""
    run_pgdpo("reference", config_file, "train.cached_draws=1")
    cached = ("train.reference=cached", "train.cached_draws=1", *ONE)
    base = (f"model.adapter.init={sft}", "model.adapter.reference=base")
    (first,) = train(config_file, "base", *base, *cached)
    (live,) = train(config_file, "live", *base, "train.reference=frozen", *ONE)
    assert abs(first["loss"] - live["loss"]) <= 1e-6 * live["loss"] and live["loss"] != LN2
    with pytest.raises(
        InputError, match="`reference LoRA`: found None, wanted {'file': '[0-9a-f]{12}', 'rank': 4"
    ):
        train(config_file, "init", f"model.adapter.init={sft}", *cached)


def test_the_policy_starts_as_the_file_says(config_file, sft):
    """Ours to the bit, ComfyUI's as a product, and under ZeRO-3 as in one process (below)."""
    wanted = lora_of(sft)
    ours = adapter_state(started(config_file, f"model.adapter.init={sft}").policy.engine.module)
    assert ours.keys() == wanted.keys() and all(torch.equal(ours[key], wanted[key]) for key in wanted)
    file = sft / "sft-comfyui.safetensors"
    theirs = adapter_state(
        started(config_file, f"model.adapter.init={file}", "model.adapter.alpha=8").policy.engine.module
    )
    for key in (name for name in wanted if ".lora_A." in name):
        up = key.replace("lora_A", "lora_B")
        torch.testing.assert_close(2 * theirs[up] @ theirs[key], wanted[up] @ wanted[key])


@pytest.mark.parametrize(
    "modes", [("adapter", "frozen"), pytest.param(("cached", "ema", "synced"), marks=pytest.mark.slow)]
)
def test_two_ranks_and_a_sharded_model(config_file, sft, ranks, modes):
    """The ways to hold it under ZeRO-3 on two ranks; the merged model sharded and in one process."""
    start = (
        f"model.adapter.init={sft}",
        "train.cached_draws=1",
        "train.zero_stage=3",
        "train.micro_batch_groups=1",
    )
    merged = (f"model.transformer={sft}", *ONE, "train.micro_batch_groups=1", "model.adapter.rank=2")
    commands = [["reference", config_file, *start]] if "cached" in modes else []
    for mode in modes:
        commands.append(["train", config_file, f"name={mode}", f"train.reference={mode}", *start, *ONE])
    ranks.run(*commands, ["train", config_file, "name=sharded", *merged, "train.zero_stage=3"])
    output = config_file.parent / "out"
    for mode in modes:
        (first,) = metrics(output, mode)
        assert first["margin"] == 0.0 and first["loss"] == LN2, mode
    (whole,) = train(config_file, "whole", *merged)
    assert losses(output, "sharded") == [pytest.approx(whole["loss"], rel=1e-6)]


def test_a_resumed_run_keeps_its_reference_and_takes_no_other(config_file, sft, tmp_path):
    moved = tmp_path / "moved.safetensors"
    shutil.copy(sft / LORA, moved)
    straight = train(config_file, "straight", f"model.adapter.init={sft}")
    train(config_file, "stopped", f"model.adapter.init={sft}", "train.steps=2")
    resumed = train(config_file, "stopped", f"model.adapter.init={moved}", options=["--resume"])
    assert [row["loss"] for row in resumed] == [row["loss"] for row in straight]
    assert len({row["loss"] for row in straight}) == 4
    other = sft / "sft-comfyui.safetensors"
    with pytest.raises(InputError, match="init_hash"):
        train(config_file, "stopped", f"model.adapter.init={other}", "train.steps=5", options=["--resume"])


def test_evaluation_compares_with_the_reference_and_export_needs_no_file(config_file, sft, tmp_path):
    lora = tmp_path / "lora.safetensors"
    shutil.copy(sft / LORA, lora)
    still = (f"model.adapter.init={lora}", "train.learning_rate=1e-30", *ONE)
    train(config_file, "still", *still)
    train(config_file, "base", *still, "model.adapter.reference=base")

    def evaluated(*overrides):
        few = ("name=still", "evaluate.num_prompts=1", "evaluate.sampling_steps=1")
        return evaluate(open_run(config_file, [*few, *overrides]))

    results = evaluated()
    assert results["displacement"]["excess/chosen"] == results["displacement"]["excess/rejected"] == 0.0
    assert results["reward"]["reference"] == results["reward"]["aligned"]
    lora.unlink()
    assert 0.0 not in implicit_rewards(open_run(config_file, ["name=base"]))["margin"].values()
    run_pgdpo("export", config_file, "name=still")
    exported, wanted = lora_of(config_file.parent / "out/still/export"), lora_of(sft)
    assert all(torch.allclose(exported[key], wanted[key], rtol=0, atol=1e-20) for key in wanted)
    with pytest.raises(InputError, match="model.adapter.init is .*: it is not there"):
        evaluated()
    with pytest.raises(InputError, match="another LoRA than the run started from .*model.adapter.init=FILE"):
        evaluated(f"model.adapter.init={sft / 'sft-comfyui.safetensors'}")
    assert evaluated(f"model.adapter.init={sft}")["displacement"]["margin"] == 0.0
    with pytest.raises(InputError, match="its model.adapter.init is .*says None"):
        evaluated("model.adapter.init=null")


def test_a_merged_model_is_trained_on_where_it_lies(config_file, sft):
    """Its first predictions are those of the LoRA that was merged, and its reference is the merged model."""
    merged = f"model.transformer={sft}"
    inputs = {
        "hidden_states": torch.randn(2, 48, 4, 4, 4),
        "timestep": torch.tensor([250.0, 900.0]),
        "encoder_hidden_states": torch.randn(2, 8, 64),
    }
    first = predicted(started(config_file, merged).policy.engine.module, inputs)
    lora = predicted(started(config_file, f"model.adapter.init={sft}").policy.engine.module, inputs)
    whole, base = (
        predicted(open_family(config.model).load_transformer(dtype=torch.float32), inputs)
        for config in (load_config(config_file, [merged]), load_config(config_file))
    )
    assert torch.equal(first, whole)
    torch.testing.assert_close(first, lora, rtol=1e-5, atol=1e-5)
    assert (first - base).abs().max() > 1e-2
    rows = train(config_file, "dpo", merged, "train.steps=2")
    assert rows[0]["margin"] == 0.0 and rows[1]["margin"] != 0.0
    run_pgdpo("export", config_file)
    margins = implicit_rewards(open_run(config_file))["margin"]
    assert len(margins) == 12 and set(margins.values()) != {0.0}
    with pytest.raises(InputError, match="model_hash"):
        train(config_file, "dpo", "model.transformer=null", "train.steps=3", options=["--resume"])


def test_check_and_plan_know_of_it_before_anything_is_loaded(config_file, sft, monkeypatch):
    from pgdpo.models.families.wan import Wan

    monkeypatch.setattr(Wan, "load_transformer", lambda *_, **__: pytest.fail("weights were loaded"))
    start = f"model.adapter.init={sft}"
    assert not run_check(config_file, [start]).counts["error"]
    for change, key, said in [
        ("model.adapter.rank=2", "model.adapter.rank", "rank 4"),
        ("model.adapter.target_modules=[to_q]", "model.adapter.target_modules", "these leave out"),
        ("model.adapter.init=/nowhere", "model.adapter.init", "it is not there"),
        ("model.transformer=/nowhere", "model.transformer", "neither transformer/config.json"),
    ]:
        (problem,) = (p for p in run_check(config_file, [start, change]).problems if p.severity == "error")
        assert problem.key == key and said in problem.what
    with pytest.raises(
        InputError, match="unknown key `model.adapter.path`: did you mean `model.adapter.init`?"
    ):
        load_config(config_file, ["model.adapter.path=x"])

    def held(*overrides):
        config = load_config(config_file, [start, *overrides])
        return sum(size.numel for size in Planner(config)._reference(config))

    adapter = held()
    assert adapter == held("train.reference=ema") > 0 == held("model.adapter.reference=base")
    frozen = held("train.reference=frozen")
    assert frozen == held("train.reference=frozen", "model.adapter.reference=base") + adapter
