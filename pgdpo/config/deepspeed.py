"""Which of DeepSpeed's own keys a configuration may set (`train.deepspeed`), and why not the others.

Sorted by name, so that a key of another version of DeepSpeed is refused until somebody has thought about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

SCALAR = None  # a value, of the kind that `_wanted` tells

ZERO_ALWAYS = (  # with ZeRO stage 1 to 3
    *("overlap_comm", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size"),
)
ZERO_12 = (
    *("allgather_partitions", "allgather_bucket_size", "use_multi_rank_bucket_allreduce"),
    *("round_robin_gradients", "parameter_alignment", "ignore_unused_parameters"),
)
ZERO_3 = (
    *("stage3_prefetch_bucket_size", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
    *("stage3_param_persistence_threshold", "stage3_model_persistence_threshold"),
    "stage3_allgather_sequential",
    *("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients"),
    *("memory_efficient_linear", "log_trace_cache_warnings", "enable_sanity_checks", "sub_group_size"),
)
READ_AT = dict.fromkeys(ZERO_ALWAYS, (1, 2, 3)) | dict.fromkeys(ZERO_12, (1, 2)) | dict.fromkeys(ZERO_3, (3,))
QUANTIZED = ("zero_quantized_weights", "zero_quantized_gradients")
ALLOWED: dict[str, Mapping[str, Any] | None] = {
    "zero_optimization": READ_AT,
    "aio": dict.fromkeys(
        ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds")
    ),
    "comms_logger": dict.fromkeys(("enabled", "prof_all", "prof_ops", "verbose", "debug")),
    "communication_data_type": SCALAR,
    **dict.fromkeys(("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state")),
    **dict.fromkeys(("disable_python_gc", "log_level")),
}

# DeepSpeed converts some values that are none of these, drops others in silence, and meets others in the middle of a
# run. Of these a whole number is expected, by the least that it takes; of all others but those below, true or false.
COUNTS = {
    **dict.fromkeys(("steps_per_print", "reduce_bucket_size"), 1),
    **dict.fromkeys(("block_size", "queue_depth", "intra_op_parallelism"), 1),
    **dict.fromkeys(("allgather_bucket_size", "sub_group_size", "zero_hpz_partition_size"), 0),
    **dict.fromkeys(("stage3_prefetch_bucket_size", "stage3_max_live_parameters"), 0),
    **dict.fromkeys(("stage3_max_reuse_distance", "stage3_param_persistence_threshold"), 0),
    "stage3_model_persistence_threshold": 0,
}
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
DEEPSPEEDS_TO_CHECK = ("communication_data_type", "prof_ops")

_BATCH = "it follows from the ranks; set train.global_batch_groups and train.micro_batch_groups"
_PRECISION = "weights that train stay fp32 and their gradients are summed in fp32; set train.precision"
_SAVES = "checkpoints are of pgdpo's own format, for every stage and number of ranks; leave it out"
_ADAMW = "the optimizer is torch's AdamW; set train.learning_rate, train.adam_betas and train.weight_decay"
_METRICS = "a run's figures go to metrics.jsonl and to train.trackers; leave it out"
_ORDER = "pairs come in an order that the seed alone decides; leave it out"
_MODEL = "the model is run as it is, on ranks that share pairs or tokens; leave it out"
_OLD = "DeepSpeed has given it up; leave it out"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu"), _BATCH),
    **dict.fromkeys(("gradient_accumulation_steps", "managed_gradient_accumulation"), _BATCH),
    **dict.fromkeys(("optimizer", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"), _ADAMW),
    "scheduler": "set train.schedule and train.warmup_steps",
    "gradient_clipping": "set train.max_grad_norm",
    **dict.fromkeys(("fp16", "bf16", "torch_autocast", "data_types", "amp"), _PRECISION),
    **dict.fromkeys(
        ("prescale_gradients", "gradient_predivide_factor"), "sums in fp32 need no scaling; leave it out"
    ),
    "gradient_allreduce_op": "gradients are the mean over the pairs of a step; leave it out",
    "disable_allgather": "the ranks would go on with different weights; leave it out",
    "seq_parallel_communication_data_type": "tokens are exchanged in the precision that they are computed in; leave "
    "it out",
    "activation_checkpointing": "set model.gradient_checkpointing and model.activation_offload",
    "compile": "set model.compile",
    **dict.fromkeys(
        ("checkpoint", "datastates", "use_node_local_storage", "load_universal_checkpoint"), _SAVES
    ),
    **dict.fromkeys(("tensorboard", "csv_monitor", "wandb", "comet", "monitor_config"), _METRICS),
    **dict.fromkeys(("flops_profiler", "timers", "autotuning"), _METRICS),
    **dict.fromkeys(("data_efficiency", "curriculum_learning", "dataloader_drop_last"), _ORDER),
    **dict.fromkeys(("pipeline", "tensor_parallel", "expert_parallel", "hybrid_engine"), _MODEL),
    **dict.fromkeys(("use_data_before_expert_parallelism", "weight_quantization", "zenflow"), _MODEL),
    "sequence_parallel_size": "set train.sequence_parallel",
    "nvme_path": "set train.nvme_path",
}
ZERO_REFUSED: dict[str, str] = {
    "stage": "set train.zero_stage",
    **dict.fromkeys(("offload_param", "cpu_offload_param"), "set train.offload_parameters"),
    **dict.fromkeys(("offload_optimizer", "cpu_offload"), "set train.offload_optimizer"),
    "cpu_offload_use_pin_memory": "memory is pinned wherever there is a GPU; leave it out",
    "compute_grad_norm": "gradients are clipped by their norm, and a run's metrics and guards read it; leave it out",
    "zenflow": "it steps with gradients of earlier steps, so losses would be others; leave it out",
    **dict.fromkeys(("load_from_fp32_weights", "elastic_checkpoint", "pipeline_loading_checkpoint"), _SAVES),
    **dict.fromkeys(
        ("stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"), _SAVES
    ),
    "legacy_stage1": _OLD,
    "save_muon_momentum_buffer_in_memory": _ADAMW,
    "override_module_apply": _MODEL,
    "stage3_use_all_reduce_for_fetch_params": "it wants all weights in one dtype, and models keep some in fp32; leave "
    "it out",
    **dict.fromkeys(
        ("stage3_module_granularity_threshold", "leaf_module"),
        "weights of such modules are gone before their backward, a LoRA's among them; leave it out",
    ),
    "zero_quantized_nontrainable_weights": "weights are partitioned before it is known which train, so that none "
    "would be quantized; leave it out",
}


def check_deepspeed_keys(given: Mapping[str, Any], *, bf16: bool, deterministic: bool) -> None:
    """Raises ValueError for the first of DeepSpeed's keys that may not be set, or not to its value, with the reason and
    what to do."""
    for key, value in given.items():
        _check_key("train.deepspeed", key, ALLOWED, REFUSED)
        known = ALLOWED[key]
        if known is SCALAR:
            _check_value("train.deepspeed", key, value)
            continue
        if not isinstance(value, Mapping):
            raise ValueError(f"train.deepspeed.{key} is {value!r}: a mapping is expected, {', '.join(known)}")
        for inner, inner_value in value.items():
            _check_key(f"train.deepspeed.{key}", inner, known, ZERO_REFUSED if known is READ_AT else {})
            _check_value(f"train.deepspeed.{key}", inner, inner_value)
    if deterministic and "communication_data_type" in given:
        raise ValueError(
            "train.deepspeed.communication_data_type is set, and train.deterministic sums gradients in an order of its "
            "own: leave one of them out"
        )
    if bf16 and given.get("zero_optimization", {}).get("zero_quantized_weights"):
        raise ValueError(
            "train.deepspeed.zero_optimization.zero_quantized_weights is true: DeepSpeed quantizes no weights beside "
            "torch's autocast, which train.precision bf16 is; leave it out, or set train.precision to fp32"
        )


def _check_key(where: str, key: str, allowed: Mapping, refused: Mapping[str, str]) -> None:
    if key in refused:
        raise ValueError(f"{where}.{key} cannot be set: {refused[key]}")
    if key in allowed:
        return
    if key in READ_AT or key in ZERO_REFUSED:
        raise ValueError(f"{where}.{key}: it belongs under train.deepspeed.zero_optimization")
    close = difflib.get_close_matches(str(key), list(allowed), n=1)
    guess = f"did you mean `{close[0]}`? " if close else ""
    raise ValueError(f"{where}.{key} is unknown: {guess}allowed are {', '.join(allowed)}")


def _check_value(where: str, key: str, value: Any) -> None:
    if value == "auto":
        raise ValueError(
            f"{where}.{key} is 'auto', which nothing fills in here: set {_wanted(key) or 'a value'}, or leave it out"
        )
    if key in DEEPSPEEDS_TO_CHECK:
        return
    if key in COUNTS:
        fits = type(value) is int and value >= COUNTS[key]
    else:
        fits = value in LOG_LEVELS if key == "log_level" else isinstance(value, bool)
    if not fits:
        raise ValueError(f"{where}.{key} is {value!r}: set {_wanted(key)}, or leave it out")


def _wanted(key: str) -> str:
    """The values that a key may have, in words; empty where DeepSpeed knows them."""
    if key in DEEPSPEEDS_TO_CHECK:
        return ""
    if key in COUNTS:
        return f"a whole number of at least {COUNTS[key]}, in digits alone"
    return f"one of {', '.join(LOG_LEVELS)}" if key == "log_level" else "true or false"


def deepspeed_notes(given: Mapping[str, Any], *, stage: int, bf16: bool) -> Iterator[str]:
    """What is not read at this ZeRO stage, and what changes numbers."""
    zero = given.get("zero_optimization", {})
    unread = [f"zero_optimization.{key}" for key in zero if stage not in READ_AT[key]]
    if stage and bf16 and "communication_data_type" in given:
        unread.append("communication_data_type")
    if unread:
        yield f"train.deepspeed: DeepSpeed does not read {', '.join(unread)} with train.zero_stage {stage}"
    changed = [key for key in QUANTIZED if zero.get(key) and stage in READ_AT[key]]
    if "communication_data_type" not in unread and given.get("communication_data_type", "fp32") != "fp32":
        changed.append("communication_data_type")
    if changed:
        yield (
            f"train.deepspeed: {', '.join(changed)} rounds what the ranks exchange: losses are not those of a run "
            "without"
        )
