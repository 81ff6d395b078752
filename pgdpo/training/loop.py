"""The training loop: draw, noise, policy, reference, pair errors, objective, backward, step."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from pgdpo_kernels import noise_pair, pair_errors
from torch.utils.data import DataLoader

from pgdpo import reference as references
from pgdpo.config import Config
from pgdpo.console import progress_bar, say
from pgdpo.data.prepared import PreparedPairs, StepBatches, collate
from pgdpo.diffusion.draws import sigmas
from pgdpo.errors import InputError
from pgdpo.objectives import build_objective
from pgdpo.training import checkpoint, engine as engines
from pgdpo.training.metrics import MetricsLog, StepMetrics, pair_metrics, peak_memory, watch_gradients
from pgdpo.training.pairs import pair_info
from pgdpo.training.policy import build_policy, open_pairs, run_identity


def train(config: Config, *, resume: bool = False, restart: bool = False) -> Path:
    """Train `config`'s objective on its prepared pairs. Returns the last checkpoint.

    `resume`: go on from the newest valid checkpoint; `restart`: remove an earlier run of this name first.
    Raises InputError for anything a user can mend, before the first step where it can be known.
    """
    device = engines.start_distributed()
    start_over(config.run_dir, resume, restart)
    data = open_pairs(config, "train")
    objective = build_objective(config.objective["name"], **config.objective_options)
    family, transformer = build_policy(config, device)
    engine = engines.build_engine(transformer, config)
    policy = functools.partial(family.predict, engine)
    reference = build_reference(config, objective, family, engine, policy, device)

    identity = run_identity(config, data)
    last = checkpoint.latest_checkpoint(config.run_dir) if resume else None
    done = checkpoint.load_checkpoint(engine, last, identity) if last else 0
    save = functools.partial(
        checkpoint.save_checkpoint, engine, config.run_dir, state=identity, keep=config.train.keep_checkpoints
    )
    steps = range(done, config.train.steps)
    batches = iter(load_batches(config, data, steps))
    log = MetricsLog(config.run_dir, start=done) if dist.get_rank() == 0 else None
    say_start(config, engine, data, done)
    with progress_bar(f"train {config.objective['name']}", total=config.train.steps, completed=done) as bar:
        for step in steps:
            started = time.perf_counter()
            engines.set_learning_rate(engine, engines.learning_rate(config.train, step))
            metrics = StepMetrics(device)
            for _ in range(engine.gradient_accumulation_steps()):
                batch = next(batches)
                output, errors, sigma = pair_loss(config, batch, policy, reference, objective, family, device)
                refuse_non_finite(output.per_pair, errors, batch["ids"], step)
                watch_gradients(errors)
                engine.backward(output.loss)
                engine.step()
                metrics.add(pair_metrics(errors, output), sigma)
            values = metrics.reduce() | step_costs(config, engine, data, started, device)
            if log:
                log.write(step + 1, values)
            bar.advance(note=note(values))
            if (step + 1) % config.train.checkpoint_every == 0 or step + 1 == config.train.steps:
                last = save(step + 1)
    if log:
        log.close()
    return last


def pair_loss(
    config: Config, batch: dict, policy: Callable, reference: Callable | None, objective, family, device
):
    """One micro-batch, as in Diffusion-DPO (arXiv 2311.12908, eq. 14): noise and timestep shared within a pair.

    Returns (objective's output, PairErrors, sigma [B]).
    """
    latents, prompt = batch["latents"].to(device), batch["prompt"].to(device)  # (2B, C, F, H, W), (2B, L, D)
    sigma = sigmas(
        config.diffusion, seed=config.train.seed, pair_ids=batch["pair_ids"], draws=batch["draw"]
    ).to(device)
    noisy, target = noise_pair(
        latents,
        sigma,
        seed=config.train.seed,
        pair_ids=batch["pair_ids"].to(device),
        draw=batch["draw"].to(device),
        prediction=family.PREDICTION,
    )
    both = torch.cat([sigma, sigma])
    ref_pred = reference(noisy, both, prompt) if reference else None
    pred = policy(noisy, both, prompt)  # chosen and rejected in one call
    errors = pair_errors(pred, target, ref_pred, cross=objective.needs_cross)
    return objective(errors, pair_info(batch["rows"], sigma)), errors, sigma


def build_reference(config: Config, objective, family, engine, policy: Callable, device) -> Callable | None:
    """The configured way to hold the reference; None for an objective that needs none."""
    if not objective.needs_reference:
        return None
    kind = config.train.reference
    if kind == "adapter" or (kind == "auto" and config.model.adapter):
        return references.adapter_off(engine.module, policy)
    _, frozen = build_policy(
        config.model_copy(update={"model": config.model.model_copy(update={"adapter": None})}), device
    )
    return references.frozen_copy(frozen, family.predict)


def load_batches(config: Config, data: PreparedPairs, steps: range) -> Iterator[dict]:
    batches = StepBatches(
        len(data),
        seed=config.train.seed,
        global_batch=config.train.global_batch_pairs,
        micro_batch=config.train.micro_batch_pairs,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        steps=steps,
    )
    return DataLoader(data, batch_sampler=batches, collate_fn=collate, num_workers=config.data.workers)


def refuse_non_finite(per_pair: torch.Tensor, errors, ids: list[str], step: int) -> None:
    """Stop all ranks before the optimizer when a pair's loss or error is not finite on any of them."""
    bad = ~(
        per_pair.isfinite()
        & errors.policy_chosen.isfinite().all(1)
        & errors.policy_rejected.isfinite().all(1)
    )
    named = [pair for pair, is_bad in zip(ids, bad.tolist(), strict=True) if is_bad]
    count = torch.tensor([len(named)], device=per_pair.device)
    dist.all_reduce(count)
    if not count.item():
        return
    everywhere: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, named)
    raise InputError(
        f"step {step + 1}: the loss is not finite for the pairs {', '.join(sum(everywhere, []))}: nothing was updated. "
        "Look at these clips' latents, or lower train.learning_rate or objective.beta; the last checkpoint is intact"
    )


def start_over(run_dir: Path, resume: bool, restart: bool) -> None:
    """Never train into a folder that holds another run by accident."""
    if restart and dist.get_rank() == 0:
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        shutil.rmtree(run_dir / "tensorboard", ignore_errors=True)
        (run_dir / "metrics.jsonl").unlink(missing_ok=True)
    dist.barrier()
    if not resume and checkpoint.checkpoints_of(run_dir):
        raise InputError(
            f"{run_dir}: holds checkpoints of an earlier run: go on from the last one with --resume, remove it with "
            "--restart, or give this run another `name`"
        )


def step_costs(config: Config, engine, data: PreparedPairs, started: float, device: torch.device) -> dict:
    seconds = time.perf_counter() - started
    pairs = config.train.global_batch_pairs
    patch = engine.module.config.patch_size
    _, *size = data.latent_shape
    tokens = 2 * pairs * (size[0] // patch[0]) * (size[1] // patch[1]) * (size[2] // patch[2])
    return {
        "learning_rate": engine.optimizer.param_groups[0]["lr"],
        "gradient_norm": float(engine.get_global_grad_norm() or 0.0),
        "pairs_per_second": pairs / seconds,
        "tokens_per_second": tokens / seconds,
        "peak_memory": peak_memory(device),
        "seconds": seconds,
    }


def note(values: dict) -> str:
    shown = {"loss": "loss", "acc": "implicit_accuracy", "displaced": "displacement"}
    return "  ".join(f"{label} {values[name]:.3f}" for label, name in shown.items() if name in values)


def say_start(config: Config, engine, data: PreparedPairs, done: int) -> None:
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters() if p.requires_grad)
    total = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    console_line = (
        f"{config.objective['name']}: {len(data)} pairs, {config.train.steps} steps of {config.train.global_batch_pairs} "
        f"pairs on {dist.get_world_size()} rank(s); {trained:,} of {total:,} parameters train"
    )
    say(console_line + (f"; resuming after step {done}" if done else ""))
