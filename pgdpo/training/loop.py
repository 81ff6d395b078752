"""The training loop: draw, noise, policy, reference, pair errors, objective, backward, step."""

from __future__ import annotations

import functools
import math
import shutil
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from pgdpo import reference as references
from pgdpo.config import Config
from pgdpo.console import progress_bar, say
from pgdpo.data.prepared import StepBatches, collate
from pgdpo.diffusion.draws import sigmas
from pgdpo.diffusion.inversion import invert
from pgdpo.errors import InputError
from pgdpo.objectives import ObjectiveOutput, build_objective
from pgdpo.training import checkpoint
from pgdpo.training import engine as engines
from pgdpo.training.beta import BetaWatch, say_beta
from pgdpo.training.flops import forward_flops, pair_flops, utilisation
from pgdpo.training.metrics import MetricsLog, StepMetrics, pair_metrics, peak_memory, watch_gradients
from pgdpo.training.pairs import check_data, frame_segments, pair_info
from pgdpo.training.policy import build_policy, open_pairs, run_identity
from pgdpo_kernels import PairErrors, noise_pair, pair_errors


class Trainer:
    """One rank's part of a training run.

        last_checkpoint = Trainer(load_config("quickstart.yaml")).train(resume=True)

    Building it loads data and model and raises InputError for anything that a user can mend.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = engines.start_distributed()
        self.data = open_pairs(config, "train")
        self.objective = build_objective(
            config.objective["name"],
            process_group=dist.group.WORLD,
            seed=config.train.seed,
            **config.objective_options,
        )
        check_data(self.objective, config, self.data)
        self.segments = frame_segments(self.objective, config, self.data)
        self.family, transformer = build_policy(config, self.device)
        self.engine = engines.build_engine(transformer, config)
        self.policy = functools.partial(self.family.predict, self.engine)
        self.reference = self._build_reference()
        self.beta_watch = BetaWatch(self.objective, config.run_dir)

    def train(self, *, resume: bool = False, restart: bool = False) -> Path:
        """Train to the configured number of steps. Returns the last checkpoint.

        `resume`: go on from the newest valid checkpoint; `restart`: remove an earlier run of this name first.
        """
        train = self.config.train
        done = self._begin(resume, restart)
        batches = iter(self._loader(range(done, train.steps)))
        log = MetricsLog(self.config.run_dir, start=done) if dist.get_rank() == 0 else None
        self._say_start(done)
        with progress_bar(f"train {self.objective.name}", total=train.steps, completed=done) as bar:
            for step in range(done, train.steps):
                values = self._step(step, batches)
                if log:
                    log.write(step + 1, values)
                bar.advance(note=_note(values))
                self.beta_watch.report(step + 1)
                if (step + 1) % train.checkpoint_every == 0 or step + 1 == train.steps:
                    self._save(step + 1)
        if log:
            log.close()
        return checkpoint.checkpoints_of(self.config.run_dir)[-1]

    def _step(self, step: int, batches) -> dict:
        """One optimizer step over its micro-batches. Returns what is logged."""
        started = time.perf_counter()
        engines.set_learning_rate(self.engine, engines.learning_rate(self.config.train, step))
        metrics = StepMetrics(self.device)
        for _ in range(self.engine.gradient_accumulation_steps()):
            batch = next(batches)
            output, errors, sigma = self.pair_loss(batch)
            refuse_non_finite(output.per_pair, errors, batch["ids"], step)
            watch_gradients(errors)
            self.engine.backward(output.loss)
            norm = engines.step(self.engine)
            metrics.add(pair_metrics(errors, output), sigma)
            self.beta_watch.add(output.logits)
        return metrics.reduce() | {"gradient_norm": norm} | self._costs(started)

    def pair_loss(self, batch: dict) -> tuple[ObjectiveOutput, PairErrors, torch.Tensor]:
        """One micro-batch, as in Diffusion-DPO (arXiv 2311.12908, eq. 14): a pair shares its noise and timestep.

        Returns (the objective's output, the errors, sigma `[B]`).
        """
        device = self.device
        latents, prompt = (
            batch["latents"].to(device),
            batch["prompt"].to(device),
        )  # (2B, C, F, H, W), (2B, L, D)
        keys = {"seed": self.config.train.seed, "pair_ids": batch["pair_ids"]}
        sigma = sigmas(self.config.diffusion, draws=batch["draw"], **keys).to(device)  # (B,)
        both = torch.cat([sigma, sigma])
        noisy, target = self._noise(batch, latents, sigma, prompt)
        ref_pred = self.reference(noisy, both, prompt) if self.reference else None
        pred = self.policy(noisy, both, prompt)  # chosen and rejected in one call
        errors = pair_errors(pred, target, ref_pred, segments=self.segments, cross=self.objective.needs_cross)
        pairs = pair_info(batch["rows"], sigma * self.family.NUM_TRAIN_TIMESTEPS)
        return self.objective(errors, pairs), errors, sigma

    def _noise(
        self, batch: dict, latents: torch.Tensor, sigma: torch.Tensor, prompt: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noisy latents and target `[2B, ...]`: noise drawn per pair, or inverted by policy or reference."""
        steps = self.config.diffusion.inversion_steps
        if steps is None:
            return noise_pair(
                latents,
                sigma,
                seed=self.config.train.seed,
                pair_ids=batch["pair_ids"].to(self.device),
                draw=batch["draw"].to(self.device),
                prediction=self.family.PREDICTION,
            )
        by_reference = self.objective.options.get("inverted_by") == "reference"
        model = self.reference if by_reference else self.policy  # the policy, as in DDIM-InPO's public code
        return invert(
            lambda noisy, level: model(noisy, level, prompt), latents, torch.cat([sigma, sigma]), steps=steps
        )

    def _build_reference(self) -> references.Forward | None:
        """The configured way to hold the reference; None for an objective that needs none."""
        if not self.objective.needs_reference:
            return None
        config = self.config
        if config.train.reference == "adapter" or (config.train.reference == "auto" and config.model.adapter):
            return references.adapter_off(self.engine.module, self.policy)
        without_adapter = config.model.model_copy(update={"adapter": None})
        _, frozen = build_policy(config.model_copy(update={"model": without_adapter}), self.device)
        return references.frozen_copy(frozen, self.family.predict)

    def _begin(self, resume: bool, restart: bool) -> int:
        """Load the newest valid checkpoint if asked to. Returns the steps done; never trains over another run."""
        run_dir = self.config.run_dir
        if restart and dist.get_rank() == 0:
            shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
            shutil.rmtree(run_dir / "tensorboard", ignore_errors=True)
            for log in ("metrics.jsonl", "events.jsonl"):
                (run_dir / log).unlink(missing_ok=True)
        dist.barrier()
        last = checkpoint.latest_checkpoint(run_dir)
        if last is None:
            return 0
        if not resume:
            raise InputError(
                f"{run_dir}: holds checkpoints of an earlier run: go on from the last one with --resume, remove it "
                "with --restart, or give this run another `name`"
            )
        state = checkpoint.load_checkpoint(self.engine, last, run_identity(self.config, self.data))
        self.objective.load_state_dict(state["objective_state"])
        return state["step"]

    def _save(self, step: int) -> None:
        state = {**run_identity(self.config, self.data), "objective_state": self.objective.state_dict()}
        keep = self.config.train.keep_checkpoints
        checkpoint.save_checkpoint(self.engine, self.config.run_dir, step, state, keep=keep)

    def _loader(self, steps: range) -> DataLoader:
        train = self.config.train
        batches = StepBatches(
            len(self.data),
            seed=train.seed,
            global_batch=train.global_batch_pairs,
            micro_batch=train.micro_batch_pairs,
            rank=dist.get_rank(),
            world=dist.get_world_size(),
            steps=steps,
        )
        return DataLoader(
            self.data, batch_sampler=batches, collate_fn=collate, num_workers=self.config.data.workers
        )

    @functools.cached_property
    def _flops(self) -> int:
        """FLOPs of one pair, forward and backward, policy and reference, inversion."""
        shape, text_length = self.data.latent_shape, self.data.index["text_length"]
        forward = forward_flops(self.family, self.config.model.path, shape, text_length)
        inversion = 2 * forward * (self.config.diffusion.inversion_steps or 0)
        return inversion + pair_flops(
            forward, adapter=self.config.model.adapter is not None, reference=self.reference is not None
        )

    def _costs(self, started: float) -> dict:
        """Learning rate, speed, memory (bytes) and MFU of the step begun at `started`."""
        seconds = time.perf_counter() - started
        pairs = self.config.train.global_batch_pairs
        patch = self.engine.module.config.patch_size
        tokens = 2 * pairs * math.prod(n // p for n, p in zip(self.data.latent_shape[1:], patch, strict=True))
        return {
            "learning_rate": self.engine.optimizer.param_groups[0]["lr"],
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": tokens / seconds,
            "mfu": utilisation(pairs * self._flops / seconds, self.device, dist.get_world_size()),
            "peak_memory": peak_memory(self.device),
            "seconds": seconds,
        }

    def _say_start(self, done: int) -> None:
        sizes = [
            (getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in self.engine.module.parameters()
        ]
        trained = sum(size for size, trains in sizes if trains)
        say(
            f"{self.objective.name}: {len(self.data)} pairs, {self.config.train.steps} steps of "
            f"{self.config.train.global_batch_pairs} pairs on {dist.get_world_size()} rank(s); {trained:,} of "
            f"{sum(size for size, _ in sizes):,} parameters train"
            + (f"; resuming after step {done}" if done else "")
        )
        if self.objective.needs.data and self.objective.needs.noisy == "drawn":
            say(f"{self.objective.name} expects {self.objective.needs.data}; this is not checked")
        say_beta(self.objective, math.prod(self.data.latent_shape))


def refuse_non_finite(per_pair: torch.Tensor, errors: PairErrors, ids: list[str], step: int) -> None:
    """Stop all ranks before the optimizer when a pair's loss or error is not finite on any of them."""
    finite = (
        per_pair.isfinite()
        & errors.policy_chosen.isfinite().all(1)
        & errors.policy_rejected.isfinite().all(1)
    )
    named = [pair for pair, fine in zip(ids, finite.tolist(), strict=True) if not fine]
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


def _note(values: dict) -> str:
    shown = {"loss": "loss", "acc": "implicit_accuracy", "displaced": "displacement"}
    return "  ".join(f"{label} {values[name]:.3f}" for label, name in shown.items() if name in values)
