"""`pgdpo plan`: what it prints, what it refuses, what it advises, and that its advice holds."""

import collections
import json
import re
import shutil

import pytest
import torch
from diffusers import WanTransformer3DModel
from hypothesis import given
from hypothesis import strategies as st

from pgdpo.checking import run_check
from pgdpo.config import TrainConfig
from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from pgdpo.planning.costs.disk import checkpoint_bytes, most_checkpoints
from pgdpo.planning.costs.hours import sampling_weights
from pgdpo.planning.costs.memory import Sharding, rank_memory
from pgdpo.planning.costs.meta import Size
from pgdpo.planning.costs.trace import Activations
from pgdpo.planning.hardware import machine
from pgdpo.planning.plan import Planner
from pgdpo.planning.start import refuse_too_large
from tests.models.families import KINDS
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels", "traced_once")

HELD = ["model.gradient_checkpointing=full", "train.micro_batch_groups=1"]  # little is left to change
TOLD = ["--gpus", "2", "--gpu", "H100", "--json"]


def planned(capsys, *arguments) -> dict:
    run_pgdpo("plan", *arguments)
    return json.loads(capsys.readouterr().out)


def test_a_plan_names_its_parts_and_leaves_no_files(plan_file, capsys):
    plan = planned(capsys, plan_file, *TOLD, "train.zero_stage=2")
    memory, step, disk = plan["memory"], plan["step"], plan["disk"]
    assert plan["fits"] and plan["changes"] == []
    parts = sum(memory[name] for name in ("weights", "optimizer", "inputs", "activations"))
    assert parts < memory["peak"] < sum(memory.values())
    # 4 pairs of two clips; latents 4 x 4 x 4, patches of 1 x 2 x 2
    assert (step["pairs"], step["tokens"]) == (4, 4 * 2 * 4 * 2 * 2)
    # forward and backward (test_flops.py), and the reference's forward
    counted = Planner(load_config(plan_file)).flops
    assert step["flops"] == 4 * 2 * (sum(each.total() for each in counted.policy[:2]) + counted.plain.total())
    assert step["executed_flops"] == step["flops"]
    assert step["compute_seconds"] == pytest.approx(step["flops"] / (0.35 * 989e12 * 2))
    # 16 pairs of the toy, two clips of 48 x 4 x 4 x 4 in fp32
    assert (disk["pairs"], disk["latents"]) == (16, 16 * 2 * 48 * 64 * 4)
    assert not (plan_file.parent / "out").exists()


def test_the_table_is_for_people(plan_file, capsys):
    run_pgdpo("plan", plan_file, "--gpu", "A100", "--mfu", "0.5")
    printed = capsys.readouterr().out
    for word in (
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "peak",
        "FLOPs a step",
        "one checkpoint",
        "fits",
    ):
        assert word in printed


def test_flops_count_what_is_computed_again(plan_file):
    on = machine(gpus=1, nodes=1, name="H100", memory_gb=None, mfu=0.35, disk_gb_per_s=1.0)
    planner = Planner(load_config(plan_file))
    counted, steps = planner.flops, {}
    for change in ("none", "selective", "full", "split", "cached", "none-frozen", "ema"):
        override = {
            "split": "train.group_batching=split",
            "cached": "train.reference=cached",
            "none-frozen": "train.reference=frozen",
            "ema": "train.reference=ema",
        }.get(change, f"model.gradient_checkpointing={change}")
        steps[change] = planner.plan(load_config(plan_file, [override]), on).step
    samples, forward, plain = 2 * 4, counted.policy.forward.total(), counted.plain.total()
    again = {name: (step.executed_flops - step.flops) / samples for name, step in steps.items()}
    assert again["none"] == again["none-frozen"] == again["cached"] == 0
    assert 0 < again["selective"] < again["full"] < forward == again["split"]
    assert steps["full"].flops == steps["split"].flops == steps["none-frozen"].flops == steps["none"].flops
    assert steps["none"].flops - steps["cached"].flops == samples * plain
    assert steps["ema"].flops - steps["none"].flops == samples * (forward - plain) > 0  # its own adapter


def test_a_plan_that_does_not_fit_says_by_how_much_and_what_would(plan_file, capsys):
    # a long clip: the toy's codec and this model take it, and nothing of it is ever allocated
    big = [
        "data.num_frames=200",
        "data.height=512",
        "data.width=512",
        "model.gradient_checkpointing=selective",
    ]
    with pytest.raises(InputError, match="GB more than the 75.2 GB that can be used of 80.0 GB") as error:
        run_pgdpo("plan", plan_file, *TOLD, *big)
    plan = json.loads(capsys.readouterr().out)
    assert not plan["fits"] and plan["memory"]["peak"] > 75.2e9
    seconds = [change["plan"]["step"]["seconds"] for change in plan["changes"]]
    assert len(seconds) == 3 and seconds == sorted(seconds)
    for change in plan["changes"]:
        overrides = [f"{key}={value}" for key, value in change["settings"].items()]
        assert all(item.lower() in str(error.value) for item in overrides)
    assert planned(capsys, plan_file, *TOLD, *big, *overrides)["memory"] == change["plan"]["memory"]


def test_where_nothing_helps_it_says_so(plan_file):
    with pytest.raises(InputError, match="no change of how the model is held makes it fit"):
        run_pgdpo("plan", plan_file, "--gpu-memory", "0.001", *HELD)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--gpu", "TX-9"], "whose rate is not known; known are RTX 3090, RTX 4090"),
        (["--gpu", "TX-9", "--gpu-memory", "24"], "name the one that is nearest in speed, with --gpu-memory"),
        (["data.num_frames=1028"], "data.num_frames is 1028: 1028 positions, and .* at most 1024"),
        (
            ["data.num_frames=4", "data.height=8200"],
            "data.height is 8200: 1025 positions, and .* at most 8192",
        ),
        (["--gpus", "9", "--nodes", "2"], "must be a multiple of --nodes 2"),
        (["--gpus", "3"], "must be a multiple of micro_batch_groups"),
        (
            ["--gpus", "4", "train.sequence_parallel=4", "train.micro_batch_groups=1"],
            "must divide the 2 attention heads of this model",
        ),
    ],
)
def test_bad_input(plan_file, arguments, message):
    with pytest.raises(InputError, match=message):
        run_pgdpo("plan", plan_file, *arguments)


def test_a_start_on_a_gpu_that_is_too_small_is_refused_before_weights_are_read(plan_file):
    config = load_config(plan_file, ["model.random_init=false", *HELD])  # the folder holds no weights
    refuse_too_large(config, [{"video": (48, 4, 4, 4)}], memory=80e9, gpus=1, nodes=1)
    with pytest.raises(InputError, match="more than the 3.8 MB that can be used of 4.0 MB") as error:
        refuse_too_large(config, [{"video": (48, 4, 4, 4)}], memory=4e6, gpus=1, nodes=1)
    assert "train.check_memory=warn" in str(error.value)
    refuse_too_large(
        load_config(plan_file, ["train.check_memory=warn", *HELD]),
        [{"video": (48, 4, 4, 4)}],
        memory=4e6,
        gpus=1,
        nodes=1,
    )


def test_a_checkpoint_is_as_large_as_planned(config_file, capsys):
    run_pgdpo("train", config_file, "train.steps=1")
    [folder] = (config_file.parent / "out" / "dpo" / "checkpoints").iterdir()
    from safetensors import safe_open

    stored = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys() if not name.startswith("step/")]  # noqa: SIM118
            stored += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    capsys.readouterr()
    disk = planned(capsys, config_file, *TOLD)["disk"]
    assert disk["checkpoint"] == stored
    # What is written already needs no room, here and of the prepared pairs.
    assert [room["need"] for room in disk["rooms"]] == [
        disk["checkpoints"] - sum(file.stat().st_size for file in folder.iterdir())
    ]


def test_prepared_pairs_are_counted_where_they_are(config_file, capsys):
    disk = planned(capsys, config_file, *TOLD)["disk"]
    files = [*(config_file.parent / "out" / "prepared").glob("*/*.safetensors")]
    assert disk["latents"] + disk["text"] == sum(file.stat().st_size for file in files)


def test_lists_are_counted_by_their_size_and_called_what_they_are(plan_file, capsys):
    """Two lists of three, of which a twentieth is held out: none, and nothing is divided by it."""
    row = {"prompt": "p", "samples": [{"clip": f"{place}.mp4", "rank": place} for place in range(3)]}
    manifest = plan_file.parent / "lists.jsonl"
    manifest.write_text("".join(json.dumps(row | {"id": name}) + "\n" for name in "ab"))
    lists = [f"data.train={manifest}", "data.held_out={share: 0.05}", "evaluate.every=1"]
    plan = planned(capsys, plan_file, *TOLD, *lists)
    assert (plan["disk"]["pairs"], plan["disk"]["latents"]) == (2, 2 * 3 * 48 * 64 * 4)
    run_pgdpo("plan", plan_file, *TOLD[:-1], *lists)
    printed = capsys.readouterr().out
    assert "2 groups" in printed and "4 groups, 12 clips" in printed and "pairs" not in printed


def test_offload_moves_bytes_to_the_host():
    sizes = [Size(1000, 2, False), Size(500, 4, True)]
    none = Activations(0, 0, 0)
    held = {
        where: rank_memory(sizes, [], Sharding(3, 2, False, *where), none, inputs=0)
        for where in (("none", "none"), ("cpu", "none"), ("cpu", "cpu"))
    }
    here, optimizer, both = held.values()
    assert here.host == 0 and here.optimizer == 250 * 12 and here.gradients == 250 * 4
    assert optimizer.host == here.optimizer + here.gradients and optimizer.optimizer == 0
    assert both.host == optimizer.host + 500 * 2 + 250 * 4
    assert both.peak < optimizer.peak


def test_validation_holds_another_expert_between_steps():
    """Whole on each rank, in shares under ZeRO-3; where a step needs more, it adds nothing to the peak."""
    million = 10**6  # larger than what ZeRO-3 leaves whole
    sizes, other = [Size(million, 2, False), Size(1000, 4, True)], [Size(million, 2, False)]
    for stage, share in ((1, 1), (3, 2)):
        for most in (0, 8 * million):
            found = [
                rank_memory(
                    sizes, [], Sharding(stage, 2, False), Activations(0, most, 0), inputs=0, sampled=asked
                )
                for asked in ([], other)
            ]
            assert [each.validation for each in found] == [0, 2 * million // share]
            more = found[1].peak - found[0].peak
            assert (more == 0) if most else (0 <= 2 * million // share - more < 10_000)


def test_a_plan_counts_the_other_expert_of_wan_2_2(saved):
    folder = saved(KINDS["wan 2.2 t2v a14b low"].save)
    given = ["model.expert=low_noise", "model.encoders=pipeline", f"model.path={folder}", "data.fps=own"]
    sizes = ["data.num_frames=5", "data.height=16", "data.width=16"]
    config = load_config(
        "configs/quickstart.yaml", [*given, *sizes, "evaluate.every=1", "evaluate.every_prompts=1"]
    )
    planner = Planner(config)
    other = WanTransformer3DModel.from_pretrained(folder / "transformer_2")
    assert sum(size.numel for size in planner.sampled(config)) == sum(p.numel() for p in other.parameters())
    assert planner.sampled(load_config("configs/quickstart.yaml", [*given, *sizes])) == []


@pytest.mark.quick
@given(*(st.integers(1, most) for most in (60, 70, 4)), st.none() | st.integers(1, 4))
def test_as_many_checkpoints_are_planned_as_come_to_lie_there(steps, every, keep, multiple):
    kept_every = multiple and multiple * every
    train = TrainConfig(steps=steps, checkpoint_every=every, keep_checkpoints=keep, keep_every=kept_every)
    there, most = [], 0
    for step in range(1, steps + 1):
        if step % every == 0 or step == steps:
            there.append(step)
            most = max(most, len(there))
            there = [s for s in there if s in there[-keep:] or (kept_every and s % kept_every == 0)]
    assert most_checkpoints(train) == most


def test_a_moving_reference_stands_in_the_checkpoint():
    assert checkpoint_bytes([Size(10, 4, True), Size(7, 2, False)], moving=10) == 10 * 16


def test_offloaded_activations_wait_on_the_host(plan_file):
    on = machine(gpus=1, nodes=1, name="H100", memory_gb=None, mfu=0.35, disk_gb_per_s=1.0)
    config = load_config(plan_file, ["model.gradient_checkpointing=full"])
    planner = Planner(config)
    here = planner.plan(config, on)
    there = planner.plan(load_config(plan_file, [*HELD[:1], "model.activation_offload=true"]), on)
    saved = planner.activations(config, 4).saved
    assert there.memory.host == saved > 0
    assert here.memory.activations - saved <= there.memory.activations < here.memory.activations
    assert there.step.seconds > here.step.seconds


def test_nothing_is_allocated(plan_file):
    before = torch.get_default_device()
    planner = Planner(load_config(plan_file))
    assert torch.get_default_device() == before
    assert all(size.numel > 0 for size in planner.sizes)


def test_a_card_is_timed_at_its_own_rate_and_links(plan_file, capsys):
    plans = [planned(capsys, plan_file, *told, "--gpus", 2, "--json") for told in (
        ["--gpu", "RTX4090", "--gpu-memory", "24"], ["--gpu", "NVIDIA A100-SXM4-40GB"], ["--gpu", "b200", "--nodes", 2]
    )]  # fmt: skip
    assert [plan["machine"]["peak"] for plan in plans] == [165.2e12, 312e12, 2250e12]
    assert [plan["machine"]["memory"] for plan in plans] == [24e9, 40e9, 180e9]
    for plan in plans:
        step, on = plan["step"], plan["machine"]
        assert step["compute_seconds"] == pytest.approx(step["executed_flops"] / (0.35 * on["peak"] * 2))
        assert not on["assumed"]
    # 2 x the gradients over slots, NVLink, and between nodes
    gradients = 4 * plans[0]["trained"]
    for plan, rate in zip(plans, (0.45 * 32e9, 0.45 * 300e9, 25e9), strict=True):
        assert plan["step"]["communication_seconds"] == pytest.approx(0.5 * 2 * gradients / rate)


def test_hours_of_a_run_and_of_its_evaluation(plan_file, capsys):
    lengths = ["train.steps=25", "train.checkpoint_every=10", "evaluate.every=10", "evaluate.every_prompts=3"]
    sampled = ["evaluate.num_prompts=3", "evaluate.samples_per_prompt=5", "evaluate.sampling_steps=7"]
    plan = planned(capsys, plan_file, *TOLD, *lengths, *sampled, "evaluate.draws_per_pair=2")
    counted = Planner(load_config(plan_file)).flops
    forward, plain = (each.total() / (0.35 * 989e12) for each in (counted.policy.forward, counted.plain))
    training, evaluation = plan["training"], plan["evaluation"]
    assert training["steps"] == pytest.approx(25 * plan["step"]["seconds"])
    assert training["checkpoints"] == pytest.approx(3 * plan["disk"]["checkpoint_seconds"])
    # At 10, 20 and 25: two of three prompts on a rank; guided: two forwards.
    assert training["validation"] == pytest.approx(3 * 2 * 7 * 2 * forward)
    # And twice at the start: four pairs on two ranks at two levels, both clips of each.
    assert training["held_out"] == pytest.approx((3 + 2) * 2 * 2 * 2 * forward)
    assert (evaluation["clips"], evaluation["pairs"]) == (2 * 15, 4)
    assert evaluation["sampling"] == pytest.approx(8 * 7 * 2 * (forward + plain))  # 15 clips on two ranks
    assert evaluation["errors"] == pytest.approx(4 * 2 * 2 / 2 * (forward + plain))
    assert 0 < evaluation["activations"] < plan["memory"]["activations"] and evaluation["fits"]
    alone = planned(capsys, plan_file, *TOLD, "data.held_out=null")
    assert alone["evaluation"] is None and alone["training"]["validation"] == 0


def test_evaluation_holds_one_model_in_the_dtype_that_it_computes_in(plan_file):
    """All of it, or on each of two ranks its half and the largest tensor, which is whole while it is used."""
    config = load_config(plan_file, ["model.adapter=null", "train.precision=bf16"])
    planner = Planner(config)
    assert all(size.itemsize == 4 for size in planner.sizes)  # what trains is held in fp32
    held = [sampling_weights(planner.sampling_sizes, Sharding(stage, 2, False)) for stage in (2, 3)]
    transformer = planner.family.load_transformer(dtype=torch.bfloat16, random_init_seed=0)
    parameters = {p: p.numel() * p.element_size() for p in transformer.parameters()}
    small = sum(size for p, size in parameters.items() if p.numel() <= 100_000)  # whole beside their shard
    assert held[0] == sum(parameters.values())
    assert held[1] == pytest.approx(held[0] / 2 + small + max(parameters.values()), rel=0.01)


def test_a_disk_that_is_too_small_is_refused_with_what_needs_less(plan_file, capsys, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(10**6, 10**6 - 5000, 5000))
    with pytest.raises(InputError, match=r"disk of output_dir \(.*out\) and data.prepared \(.*") as error:
        run_pgdpo("plan", plan_file, *TOLD, "train.keep_every=100")
    plan = json.loads(capsys.readouterr().out)
    [room] = plan["disk"]["rooms"]
    assert plan["fits"] and not plan["disk"]["fits"] and room["need"] == plan["disk"]["total"]
    for part in ("has 5.0 kB free", "train.keep_checkpoints=1; train.keep_every=null; ", "on a larger disk"):
        assert part in str(error.value)


def test_a_clip_beyond_the_rotary_table_is_refused_everywhere(config_file, tiny_wan, tmp_path):
    """Toy clips have a latent a frame, four here."""
    short = shutil.copytree(tiny_wan, tmp_path / "short")
    config = short / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_max_seq_len": 3}))
    refusal = "data.num_frames is 4: 4 positions, .* table has 3 .* at most 3"
    for command in ("plan", "prepare", "train"):
        with pytest.raises(InputError, match=refusal):
            run_pgdpo(command, config_file, f"model.path={short}")
    problems = run_check(str(config_file), [f"model.path={short}"]).problems
    assert any(re.search(refusal, str(each)) for each in problems if each.severity == "error")


def test_text_that_training_cuts_is_an_upper_bound(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    planner = Planner(load_config("ltx_video.yaml"))
    on = machine(gpus=1, nodes=1, name=None, memory_gb=None, mfu=0.35, disk_gb_per_s=1.0)
    notes = list(planner.notes(on))
    assert any("counted at their longest, 128 tokens, an upper bound" in note for note in notes)
    assert any("an H100 is planned for" in note for note in notes) == (not torch.cuda.is_available())
