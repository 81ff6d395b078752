"""torch.distributed and DeepSpeed, set up the same way for one process, torchrun and the deepspeed launcher."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
from pydantic import ValidationError

from pgdpo.config import Config, TrainConfig
from pgdpo.config.deepspeed import QUANTIZED, READ_AT, deepspeed_notes
from pgdpo.data.visits.batches import check_batches
from pgdpo.messages.console import say, say_once
from pgdpo.messages.errors import InputError, MachineError
from pgdpo.ranks.joined import name_interface

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402  (reads DS_ACCELERATOR)
import deepspeed.ops  # noqa: E402
from deepspeed.ops.op_builder import AsyncIOBuilder, QuantizerBuilder  # noqa: E402
from deepspeed.runtime.config import DeepSpeedConfig  # noqa: E402
from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3  # noqa: E402

from pgdpo.engine.zero.gather import gather_in_bf16  # noqa: E402
from pgdpo.engine.zero.traces import keep_traces_apart  # noqa: E402

# Elements of the buffer in which ZeRO reduces gradients, in fp32: DeepSpeed allocates it whole at the first backward
# pass, 2 GB, also for an adapter of some MB.
REDUCE_BUCKET = 500_000_000


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Forward of the linear layer that DeepSpeed puts in torch's place under ZeRO-3, as torch computes it.

    DeepSpeed's rounds the product to bf16 before it adds the bias, so that stage 3 predicts otherwise than the others.
    """
    # Detached, because autocast would keep its bf16 copy of a weight that trains until the forward ends.
    return torch.ops.aten.linear(input, weight.detach(), bias)


LinearFunctionForZeroStage3.forward = staticmethod(_linear)


def start_distributed(first: Callable[[dist.Store], None] | None = None) -> torch.device:
    """Join the process group named by the launcher's environment (or make one of a single process).

    `first`: called with the launcher's store before a new process group is made, for what may take longer than
    collectives wait. Returns this rank's device.
    """
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        if "RANK" in os.environ:
            name_interface()
            store, rank, ranks = next(dist.rendezvous("env://"))
        else:
            os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
            store, rank, ranks = dist.HashStore(), 0, 1
        if first is not None:
            first(store)
        backend, group = "nccl" if device.type == "cuda" else "gloo", dist.PrefixStore("default_pg", store)
        dist.init_process_group(backend, store=group, rank=rank, world_size=ranks)
    # DeepSpeed would compile a shared-memory extension on CPU hosts: most of a minute, and fatal without ninja.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False)
    return device


def check_deepspeed(train: TrainConfig) -> None:
    """Say what of `train.deepspeed` is not read, or changes numbers.

    Raises InputError for a value that DeepSpeed refuses; keys are checked where the configuration is read.
    """
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    try:
        DeepSpeedConfig({"train_batch_size": ranks, **train.deepspeed})
    except (ValueError, TypeError, AssertionError) as error:
        raise InputError(
            f"train.deepspeed: {_refusal(error)}; mend the value, or leave the key out"
        ) from error
    for note in deepspeed_notes(train.deepspeed, stage=train.zero_stage, bf16=train.precision == "bf16"):
        say_once(note)


def _refusal(error: Exception) -> str:
    """What DeepSpeed says of a value, in one line."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())[:200]
    first = error.errors()[0]
    return f"`{'.'.join(map(str, first['loc']))}` is {first['input']!r}: {first['msg'].lower()}"


def leave_distributed() -> None:
    """Several ranks part: from here on the main rank works alone, and what it calls asks no other."""
    if dist.get_world_size() > 1:
        dist.destroy_process_group()


def check_offload(train: TrainConfig) -> None:
    """Try what offload to NVMe needs: a folder that can be written, and libaio to build DeepSpeed's async_io with.

    Raises MachineError if either is not there.
    """
    keys = _on_nvme(train)
    if not keys:
        return
    try:
        with tempfile.TemporaryFile(dir=train.nvme_path) as file:
            file.write(b"0")
    except OSError as error:
        raise MachineError(
            f"train.nvme_path is {str(train.nvme_path)!r}: nothing can be written there ({error.strerror}); name a "
            "folder on a local NVMe drive that this user may write to"
        ) from error
    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise _no_async_io(keys[0], "no libaio to link with")


def build_operators(train: TrainConfig) -> None:
    """Load DeepSpeed's operators that the settings need; the first time, they are compiled.

    Raises MachineError if that fails, and as `check_offload`.
    """
    check_offload(train)
    keys = _on_nvme(train)
    if keys:
        say("offload to NVMe: DeepSpeed's async_io operator is loaded; its first build takes minutes")
        try:
            AsyncIOBuilder().load(verbose=False)
        except (RuntimeError, ImportError, OSError) as error:
            raise _no_async_io(keys[0], " ".join(str(error).split())[:160]) from error
    zero = train.deepspeed.get("zero_optimization", {})
    quantized = [key for key in QUANTIZED if zero.get(key) and train.zero_stage in READ_AT[key]]
    if quantized:
        say(f"{quantized[0]}: DeepSpeed's quantizer operator is loaded; its first build takes minutes")
        try:
            QuantizerBuilder().load(verbose=False)
        except (RuntimeError, ImportError, OSError, ValueError) as error:
            raise MachineError(
                f"train.deepspeed.zero_optimization.{quantized[0]} is true: DeepSpeed cannot build its quantizer "
                f"operator here ({' '.join(str(error).split())[:160]}); that takes a GPU and CUDA's compiler: leave "
                "the key out"
            ) from error


def _on_nvme(train: TrainConfig) -> list[str]:
    return [
        f"train.offload_{key}"
        for key in ("optimizer", "parameters")
        if getattr(train, f"offload_{key}") == "nvme"
    ]


def _no_async_io(key: str, reason: str) -> MachineError:
    return MachineError(
        f"{key} is `nvme`: DeepSpeed cannot build its async_io operator here ({reason}); install libaio's headers "
        "(libaio-dev), a C++ compiler and ninja, or offload to `cpu`"
    )


def build_engine(
    transformer: torch.nn.Module, config: Config, *, group_size: int
) -> deepspeed.DeepSpeedEngine:
    """Wrap the model's trainable parameters into a DeepSpeed engine with AdamW; `group_size`: of the largest group.

    torch's AdamW also where the optimizer is offloaded: DeepSpeed's CPU Adam is compiled on first use.
    """
    train = config.train
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=train.learning_rate,
        betas=train.adam_betas,
        weight_decay=train.weight_decay,
        fused=parameters[0].is_cuda,
    )
    engine, *_ = deepspeed.initialize(
        model=transformer,
        model_parameters=parameters,
        optimizer=optimizer,
        config=deepspeed_config(
            train,
            trained=sum(getattr(p, "ds_numel", p.numel()) for p in parameters),
            pieces=group_size if train.group_batching == "split" else 1,
        ),
    )
    if train.zero_stage == 3:
        keep_traces_apart(engine)
        if _gathers_in_bf16(config):
            gather_in_bf16(engine)
    return engine


def build_frozen(transformer: torch.nn.Module, config: Config) -> Callable:
    """The transformer as a forward that never trains, in the precision of the policy's engine.

    Under ZeRO-3 its weights stay sharded (or offloaded) and no optimizer state is held.
    """
    train = config.train
    transformer.requires_grad_(False)
    if train.zero_stage == 3:
        held = train.model_copy(update={"offload_optimizer": "none"})
        engine = deepspeed.initialize(model=transformer, config=deepspeed_config(held))[0]
        # What moves is read and written between forwards, and must never be a rounded weight.
        if _gathers_in_bf16(config) and config.reference_mode not in ("ema", "synced"):
            gather_in_bf16(engine)
        return engine
    device = next(transformer.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=train.precision == "bf16")(transformer.__call__)


def _gathers_in_bf16(config: Config) -> bool:
    """Weights that train are held in fp32; beside an adapter they are held, and gathered, in bf16 as it is."""
    return config.train.precision == "bf16" and config.model.adapter is None


def deepspeed_config(train: TrainConfig, trained: int = REDUCE_BUCKET, pieces: int = 1) -> dict:
    """DeepSpeed's configuration, `train.deepspeed` in it. `trained`: parameters that train; no buffer for gradients
    need be larger. `pieces`: its micro-batches in one of ours (group_batching.py)."""
    data_ranks = dist.get_world_size() // train.sequence_parallel
    offloads = {"offload_optimizer": train.offload_optimizer, "offload_param": train.offload_parameters}
    given = train.deepspeed
    zero = {
        "reduce_bucket_size": REDUCE_BUCKET,
        **given.get("zero_optimization", {}),
        "stage": train.zero_stage,
    }
    zero["reduce_bucket_size"] = min(zero["reduce_bucket_size"], trained)
    for key, target in offloads.items():
        if target != "none":
            zero[key] = {"device": target, "pin_memory": torch.cuda.is_available()}
        if target == "nvme":
            zero[key]["nvme_path"] = str(train.nvme_path)
    return {
        "steps_per_print": 2**31,
        **given,
        "train_micro_batch_size_per_gpu": train.micro_batch_groups,
        "gradient_accumulation_steps": check_batches(train, data_ranks) * pieces,
        "gradient_clipping": 0.0 if train.deterministic else train.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # No module is "safe in lower precision": the gradients of those would be summed over the ranks in bf16, at
        # other places for each ZeRO stage, and their weights be gathered in it.
        "torch_autocast": {
            "enabled": train.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }


def forward_config() -> dict:
    """DeepSpeed's configuration of weights that are sharded over any number of ranks and never train."""
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}


def learning_rate(train: TrainConfig, step: int) -> float:
    """Learning rate of `step` (from 0): linear warm-up, then constant, or a half cosine that ends near 0."""
    if step < train.warmup_steps:
        return train.learning_rate * (step + 1) / train.warmup_steps
    if train.schedule == "constant":
        return train.learning_rate
    progress = (step - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def step(engine: deepspeed.DeepSpeedEngine) -> float | None:
    """DeepSpeed's step. Returns the gradient's global norm before clipping where the optimizer stepped, else None."""
    boundary = engine.is_gradient_accumulation_boundary()
    norm = None
    if boundary and engine.zero_optimization_stage() == 0:  # DeepSpeed keeps no norm of its own without ZeRO
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in engine.module.parameters() if p.grad is not None]
        )
        engine.unclipped_norm = norm  # for the guard, which is asked inside the step
    engine.step()
    zero = engine.optimizer
    if engine.zero_optimization_stage() in (1, 2) and not any(zero.optimizer.state.values()):
        # A first step that was not taken (guards, `fitting_beta`) left no moments to link; the next one makes them.
        zero._hp_optimizer_states_linked = False
    return float(norm if norm is not None else engine.get_global_grad_norm()) if boundary else None


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, value: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = value
