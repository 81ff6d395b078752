"""DeepSpeed's own keys: each of them sorted, what is refused, what is said, and that what is allowed breaks nothing."""

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from pgdpo.config.deepspeed import ALLOWED, COUNTS, READ_AT, REFUSED, ZERO_REFUSED, deepspeed_notes
from pgdpo.config.read import load_config
from pgdpo.engine.engine import build_operators, check_deepspeed, deepspeed_config, start_distributed
from pgdpo.messages.errors import InputError, MachineError
from pgdpo.planning.costs.memory import FP32, Sharding, gathered, held, reduce_buffer
from pgdpo.planning.costs.meta import Size
from tests.worlds import losses

ZERO = "train.deepspeed.zero_optimization"
REFUSALS = {
    "the batch": (
        "train.deepspeed.train_batch_size=4",
        "train_batch_size cannot be set: it follows from the ranks",
    ),
    "the optimizer": (
        "train.deepspeed.optimizer={}",
        "optimizer cannot be set: the optimizer is torch's AdamW; set",
    ),
    "precision": ("train.deepspeed.bf16={enabled: true}", "bf16 cannot be set: weights that train stay fp32"),
    "clipping": (
        "train.deepspeed.gradient_clipping=1",
        "gradient_clipping cannot be set: set train.max_grad_norm",
    ),
    "a stage": (f"{ZERO}.stage=2", "zero_optimization.stage cannot be set: set train.zero_stage"),
    "offload": (f"{ZERO}.offload_param={{}}", "offload_param cannot be set: set train.offload_parameters"),
    "a slip": (
        f"{ZERO}.overlap_com=true",
        "zero_optimization.overlap_com is unknown: did you mean `overlap_comm`?",
    ),
    "a slip above": ("train.deepspeed.zero_optimisation={}", "is unknown: did you mean `zero_optimization`?"),
    "one level up": (
        "train.deepspeed.overlap_comm=true",
        "it belongs under train.deepspeed.zero_optimization",
    ),
    "no section": (f"{ZERO}=2", "zero_optimization is 2: a mapping is expected"),
    "a slip in another": (
        "train.deepspeed.aio={thread_count: 2}",
        "aio.thread_count is unknown: allowed are",
    ),
    "no number": ("train.deepspeed.steps_per_print=abc", "is 'abc': set a whole number of at least 1"),
    "none a step": (
        "train.deepspeed.steps_per_print=0",
        "steps_per_print is 0: set a whole number of at least 1",
    ),
    "a level": (
        "train.deepspeed.log_level=loud",
        "is 'loud': set one of debug, info, warning, error, critical",
    ),
    "no flag": ("train.deepspeed.wall_clock_breakdown=2", "is 2: set true or false, or leave it out"),
    "in aio": ("train.deepspeed.aio.block_size=abc", "aio.block_size is 'abc': set a whole number"),
    "no flag of ZeRO": (f"{ZERO}.overlap_comm=maybe", "overlap_comm is 'maybe': set true or false"),
    "of size 0": (
        f"{ZERO}.reduce_bucket_size=0",
        "reduce_bucket_size is 0: set a whole number of at least 1",
    ),
    "empty": (f"{ZERO}.reduce_bucket_size=null", "reduce_bucket_size is None: set a whole number"),
    "a float to YAML": (
        f"{ZERO}.reduce_bucket_size=5.0e+8",
        "is 500000000.0: set a whole number of at least 1, in dig",
    ),
    "negative": (
        f"{ZERO}.stage3_prefetch_bucket_size=-1",
        "bucket_size is -1: set a whole number of at least 0",
    ),
    "auto": (
        f"{ZERO}.reduce_bucket_size=auto",
        "reduce_bucket_size is 'auto', which nothing fills in here: set a wh",
    ),
    "auto, dropped": (
        f"{ZERO}.zero_hpz_partition_size=auto",
        "zero_hpz_partition_size is 'auto', which nothing fills",
    ),
    "auto, a flag": (
        f"{ZERO}.overlap_comm=auto",
        "'auto', which nothing fills in here: set true or false, or leave",
    ),
    "auto, a dtype": ("train.deepspeed.communication_data_type=auto", "here: set a value, or leave it out"),
    "quantized under autocast": (f"{ZERO}.zero_quantized_weights=true", "no weights beside torch's autocast"),
}


@pytest.mark.quick
def test_every_key_of_zero_is_sorted_once():
    fields = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert fields - READ_AT.keys() - ZERO_REFUSED.keys() == set(), "allow it or say why not"
    assert not READ_AT.keys() & ZERO_REFUSED.keys() and not ALLOWED.keys() & REFUSED.keys()
    assert READ_AT.keys() <= fields


@pytest.mark.quick
def test_values_of_zero_are_of_deepspeeds_kinds():
    for name, field in DeepSpeedZeroConfig.model_fields.items():
        key = field.alias or name
        if key in READ_AT and field.annotation is int:
            (bound,) = field.metadata
            assert COUNTS[key] == (bound.ge if hasattr(bound, "ge") else bound.gt + 1), key
        elif key in READ_AT:
            assert field.annotation in (bool, bool | None) and key not in COUNTS, key


@pytest.mark.quick
@pytest.mark.parametrize("case", REFUSALS)
def test_refused_where_the_configuration_is_read(config_file, case):
    override, message = REFUSALS[case]
    with pytest.raises(InputError) as caught:
        load_config(config_file, ["train.precision=bf16", override])
    assert message in str(caught.value)


def test_dtypes_are_deepspeeds_to_check(config_file):
    config = load_config(config_file, ["train.deepspeed.communication_data_type=half"])
    with pytest.raises(InputError, match="Supported data types: .*Got: half; mend the value"):
        check_deepspeed(config.train)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the operator may be built here")
def test_quantizing_without_its_operator(config_file):
    overrides = ["train.precision=fp32", "train.zero_stage=3", f"{ZERO}.zero_quantized_weights=true"]
    with pytest.raises(
        MachineError, match="zero_quantized_weights is true: DeepSpeed cannot build its quantizer"
    ):
        build_operators(load_config(config_file, overrides).train)
    build_operators(load_config(config_file, [*overrides, "train.zero_stage=2"]).train)  # not read there


@pytest.mark.quick
def test_what_is_not_read_or_rounds_is_said():
    given = {"zero_optimization": {"stage3_max_live_parameters": 1, "overlap_comm": True}}
    assert list(deepspeed_notes(given, stage=3, bf16=True)) == []
    (note,) = deepspeed_notes(given, stage=2, bf16=True)
    assert "does not read zero_optimization.stage3_max_live_parameters with train.zero_stage 2" in note
    half = {"communication_data_type": "bf16"}
    assert "does not read" in next(deepspeed_notes(half, stage=2, bf16=True))
    assert "communication_data_type rounds" in next(deepspeed_notes(half, stage=2, bf16=False))


def test_ours_stand_and_the_plan_reads_the_others(config_file):
    start_distributed()
    overrides = [
        "train.zero_stage=3",
        f"{ZERO}.reduce_bucket_size=1000",
        f"{ZERO}.stage3_max_live_parameters=7",
    ]
    merged = deepspeed_config(load_config(config_file, overrides).train, trained=300)
    assert merged["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 300,
        "stage3_max_live_parameters": 7,
    }
    sizes = [Size(1_000_000, 2, trained=True)] * 4

    def sharding(stage, **given):
        return Sharding(stage, 4, False, given=given)

    assert reduce_buffer(sizes, sharding(2, reduce_bucket_size=1000)) == 1000 * FP32
    assert reduce_buffer(sizes, sharding(2, reduce_bucket_size=1000, overlap_comm=True)) == 2000 * FP32
    few = {"stage3_max_live_parameters": 1000, "stage3_prefetch_bucket_size": 1000}
    assert gathered(sizes, sharding(3, **few)) == 2000 * 2 < gathered(sizes, sharding(3))
    assert held(sizes, sharding(3, zero_hpz_partition_size=2)) == held(sizes, sharding(3)) + 4_000_000


ALWAYS = ["overlap_comm=true", "contiguous_gradients=false", "reduce_scatter=false", "reduce_bucket_size=300"]
CHANGED = {  # by stage, to what is not the default
    1: ALWAYS,
    2: [
        *ALWAYS,
        *("allgather_partitions=false", "allgather_bucket_size=300", "use_multi_rank_bucket_allreduce=false"),
        *("round_robin_gradients=true", "parameter_alignment=true", "ignore_unused_parameters=false"),
    ],
    3: [
        *("overlap_comm=false", *ALWAYS[1:], "sub_group_size=1000", "zero_hpz_partition_size=2"),
        *("stage3_prefetch_bucket_size=0", "stage3_max_live_parameters=0", "stage3_max_reuse_distance=0"),
        *("stage3_model_persistence_threshold=0", "stage3_allgather_sequential=true"),
        *("memory_efficient_linear=false", "log_trace_cache_warnings=true", "enable_sanity_checks=true"),
    ],
}
WEIGHTS = {
    "lora": ["train.learning_rate=1e-4"],
    "full": ["model.adapter=null", "train.learning_rate=3e-6"],
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", CHANGED)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_what_is_allowed_gives_the_same_losses_and_resumes(config_file, ranks, stage, weights):
    """Each key alone: saved with it after two steps and taken up again, on two ranks with a frozen reference."""
    train = ["train", config_file, f"train.zero_stage={stage}", "train.reference=frozen", *WEIGHTS[weights]]
    train += ["train.micro_batch_groups=1"]
    train += [f"{ZERO}.stage3_param_persistence_threshold=0"] if stage == 3 else []
    commands = [[*train, "name=plain"]]
    for number, change in enumerate(CHANGED[stage]):
        run = [*train, f"name=run{number}", f"{ZERO}.{change}"]
        commands += [[*run, "train.steps=2"], [*run, "--resume"]]
    ranks.run(*commands, timeout=1700)
    plain = losses(config_file.parent / "out", "plain")
    for number, change in enumerate(CHANGED[stage]):
        assert losses(config_file.parent / "out", f"run{number}") == pytest.approx(plain, rel=1e-5), change
