"""DeepSpeed's settings: what is offloaded, what stays fp32, and what is refused before any weight is loaded."""

import re

import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

from pgdpo.config.read import load_config
from pgdpo.engine import policy
from pgdpo.messages.errors import InputError
from pgdpo.models.family import Family
from pgdpo.training.trainer import Trainer
from tests.worlds import losses, metrics, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")

REFUSED = {
    "offload without ZeRO": (
        ["train.offload_optimizer=cpu"],
        r"train.offload_optimizer is `cpu` and train.zero_stage is 0: DeepSpeed does that with stage 1 to 3",
    ),
    "an optimizer on NVMe without ZeRO-3": (
        ["train.offload_optimizer=nvme", "train.zero_stage=2", "train.nvme_path=/tmp"],
        r"train.offload_optimizer is `nvme` and train.zero_stage is 2: DeepSpeed does that with stage 3",
    ),
    "weights offloaded without ZeRO-3": (
        ["train.offload_parameters=cpu", "train.zero_stage=2"],
        r"train.offload_parameters is `cpu` and train.zero_stage is 2: DeepSpeed does that with stage 3; set",
    ),
    "NVMe without a path": (
        ["train.offload_parameters=nvme", "train.zero_stage=3"],
        r"train.offload_parameters is `nvme` and train.nvme_path is empty: name a folder on a local NVMe drive",
    ),
    "a path that cannot be written": (
        ["train.offload_optimizer=nvme", "train.zero_stage=3", "train.nvme_path=/proc/nvme"],
        r"train.nvme_path is '/proc/nvme': nothing can be written there \(No such file or directory\); name a folder",
    ),
    "nothing to offload": (
        ["model.activation_offload=true"],
        r"model.activation_offload moves what checkpointed blocks keep, and model.gradient_checkpointing is `none`",
    ),
    "a switch that became a choice": (
        ["model.gradient_checkpointing=true"],
        r"`model.gradient_checkpointing` is True: input should be 'none', 'full' or 'selective'",
    ),
    "more ranks to a clip than there are": (
        ["train.sequence_parallel=2"],
        r"train.sequence_parallel is 2 and 1 rank\(s\) run: it must divide them; start a multiple of 2 ranks, or set",
    ),
    "an unknown attention for the reference": (
        ["model.reference_attention=sge"],
        r"model.reference_attention is 'sge'; diffusers knows .*sage",
    ),
    "an attention that is not installed": (
        ["model.reference_attention=sage"],
        r"model.reference_attention is 'sage': it has no operator for c.*sageattention",
    ),
}


@pytest.fixture
def no_weights(monkeypatch):
    """Loading any weight fails the test."""

    def load(*args, **kwargs):
        pytest.fail("weights are loaded")

    monkeypatch.setattr(Family, "load_transformer", load)
    monkeypatch.setattr(policy, "load_sharded", load)


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_weight_is_loaded(config_file, no_weights, case):
    overrides, message = REFUSED[case]
    with pytest.raises(InputError) as caught:
        run_pgdpo("train", config_file, *overrides)
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.skipif(AsyncIOBuilder().is_compatible(verbose=False), reason="async_io can be built here")
def test_nvme_without_its_operator(config_file, no_weights, tmp_path):
    overrides = ("train.offload_optimizer=nvme", "train.zero_stage=3", f"train.nvme_path={tmp_path}")
    with pytest.raises(
        InputError, match="is `nvme`: DeepSpeed cannot build its async_io operator here .*libaio"
    ):
        run_pgdpo("train", config_file, *overrides)


@pytest.mark.parametrize("stage", [0, 3])
def test_bf16_keeps_the_modules_fp32_that_the_model_names(config_file, stage):
    """DeepSpeed's own bf16 engine would cast them; its autocast leaves parameters as they are."""
    config = load_config(config_file, ["train.precision=bf16", f"train.zero_stage={stage}"])
    transformer = Trainer(config).policy.engine.module
    kept, cast = set(), set()
    for name, parameter in transformer.named_parameters():
        named = not set(name.split(".")).isdisjoint(transformer._keep_in_fp32_modules)
        (kept if named or "lora" in name else cast).add(getattr(parameter, "ds_tensor", parameter).dtype)
    assert kept == {torch.float32} and cast == {torch.bfloat16}


def test_bf16_losses_are_those_of_every_zero_stage(config_file):
    """Equal weights give equal predictions to the last bit at all stages, and at 0 to 2 equal gradients.

    Stage 3's hooks at every module's inputs add the bf16 gradients of an activation that several layers read in
    another order. From the third step on its weights differ by a share of a step, and so do predictions by roundings
    of at most u = 2^-8 of a value. That moves a mean squared error by 2u times the root mean squares of residual and
    prediction, about 1 each, and the loss by half of beta times that, for each of a pair's two errors.
    """
    beta, runs = 5, []
    for stage in range(4):
        settings = ("train.precision=bf16", f"train.zero_stage={stage}", f"objective.beta={beta}")
        run_pgdpo("train", config_file, f"name=stage{stage}", "train.steps=3", *settings)
        runs.append(metrics(config_file.parent / "out", f"stage{stage}"))
    losses = [[row["loss"] for row in rows] for rows in runs]
    assert len(set(losses[0])) == 3
    assert losses[0] == losses[1] == losses[2]
    assert losses[0][:2] == losses[3][:2]
    assert abs(losses[0][2] - losses[3][2]) <= 2 * beta * 2**-8
    norms = [rows[0]["gradient_norm"] for rows in runs]
    assert norms == pytest.approx(norms[:1] * 4, rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # DeepSpeed compiles its operator the first time
@pytest.mark.skipif(
    not AsyncIOBuilder().is_compatible(verbose=False), reason="no libaio to build async_io with"
)
@pytest.mark.parametrize("weights", ["lora", "full"])
def test_offload_to_nvme_trains_and_resumes_as_without(config_file, tmp_path, weights, ranks):
    """Policy and, with full weights, a frozen reference. A resumed run starts from the restored weights."""
    plain = ["train.zero_stage=3", "train.learning_rate=1e-5", "train.checkpoint_every=2"]
    plain += ["model.adapter=null"] if weights == "full" else []
    nvme = [*plain, "train.offload_optimizer=nvme", "train.offload_parameters=nvme"]
    nvme += [f"train.nvme_path={tmp_path}"]
    train = ["train", str(config_file)]
    commands = [
        [*train, *plain, "name=plain", "train.steps=4"],
        [*train, *nvme, "name=nvme", "train.steps=2"],
        [*train, *nvme, "name=nvme", "train.steps=4", "--resume"],
    ]
    ranks.run(*commands, timeout=1700)
    expected, found = (losses(config_file.parent / "out", name) for name in ("plain", "nvme"))
    assert len(set(expected)) == 4 and found == pytest.approx(expected, rel=1e-5)


def test_what_is_offloaded_is_offloaded(config_file):
    offloads = ("train.zero_stage=3", "train.offload_optimizer=cpu", "train.offload_parameters=cpu")
    engine = Trainer(load_config(config_file, [*offloads, "train.reference=frozen"])).policy.engine
    assert engine.zero_cpu_offload() and engine.zero_offload_param().device == "cpu"
    assert engine.optimizer.offload_optimizer and engine.optimizer.offload_param
