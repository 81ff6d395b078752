"""torch.distributed and DeepSpeed, set up the same way for one process, torchrun and the deepspeed launcher."""

from __future__ import annotations

import math
import os

import torch
import torch.distributed as dist

from pgdpo.config import Config, TrainConfig
from pgdpo.errors import InputError

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402  (reads DS_ACCELERATOR)
import deepspeed.ops  # noqa: E402


def start_distributed() -> torch.device:
    """Join the process group named by the launcher's environment (or make one of a single process).

    Returns this rank's device.
    """
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend)
        else:
            os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed asks for it
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    # DeepSpeed would compile a shared-memory extension on CPU hosts: most of a minute, and fatal without ninja.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False)
    return device


def check_batches(train: TrainConfig, world: int) -> int:
    """Gradient accumulation steps. Raises InputError if the global batch does not split over ranks."""
    chunk = train.micro_batch_pairs * world
    if train.global_batch_pairs % chunk:
        low = train.global_batch_pairs // chunk * chunk
        options = f"{low} or {low + chunk}" if low else f"{chunk}"
        raise InputError(
            f"train.global_batch_pairs is {train.global_batch_pairs}: it must be a multiple of micro_batch_pairs x "
            f"ranks = {train.micro_batch_pairs} x {world}: take {options}"
        )
    return train.global_batch_pairs // chunk


def build_engine(transformer: torch.nn.Module, config: Config) -> deepspeed.DeepSpeedEngine:
    """Wrap the model's trainable parameters into a DeepSpeed engine with AdamW."""
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
        config=_deepspeed_config(train, dist.get_world_size()),
    )
    return engine


def _deepspeed_config(train: TrainConfig, world: int) -> dict:
    return {
        "train_micro_batch_size_per_gpu": train.micro_batch_pairs,
        "gradient_accumulation_steps": check_batches(train, world),
        "gradient_clipping": train.max_grad_norm,
        "zero_optimization": {"stage": train.zero_stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": train.precision == "bf16", "dtype": "bfloat16"},
        "steps_per_print": 2**31,
    }


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
    engine.step()
    return float(norm if norm is not None else engine.get_global_grad_norm()) if boundary else None


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, value: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = value
