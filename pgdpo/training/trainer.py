"""The training loop: draw, noise, policy, reference, pair errors, objective, backward, step."""

from __future__ import annotations

import functools
import math
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from pgdpo.checkpoints.checkpoint import Checkpoints
from pgdpo.checkpoints.events import failure_logged, log_event
from pgdpo.checkpoints.identity import run_identity
from pgdpo.checkpoints.published import checkpoints_of, read_state, step_of
from pgdpo.checkpoints.resume import check_resume, described, explain_run, remove_run, set_aside
from pgdpo.config import Config
from pgdpo.data.batches import StepBatches, check_batches
from pgdpo.data.prepared import load_batches
from pgdpo.diffusion.draws import seed_torch
from pgdpo.diffusion.inversion import invert
from pgdpo.engine import engine as engines
from pgdpo.engine import pair_batching
from pgdpo.engine.blocks import each_block
from pgdpo.engine.deterministic import Deterministic, check_objective, make_deterministic
from pgdpo.engine.parallel import arrange_ranks, check_sequence_parallel
from pgdpo.engine.policy import build_policy, start_ranks
from pgdpo.guards.bad_steps import Guard, check_damage, sound_pairs, without_stand_ins
from pgdpo.guards.signals import StopSignals
from pgdpo.guards.watchdog import Watchdog
from pgdpo.messages.console import progress_bar, say
from pgdpo.messages.errors import InputError, Stopped
from pgdpo.models import open_family
from pgdpo.objectives import ObjectiveOutput, build_objective
from pgdpo.planning.costs.flops import SampleFlops, utilisation
from pgdpo.planning.start import check_memory
from pgdpo.ranks import agreement
from pgdpo.reference import CachedErrors, Live, Reference
from pgdpo.training import references
from pgdpo.training.beta import BetaWatch, say_beta
from pgdpo.training.metrics import StepMetrics, finite_only, note, pair_metrics, peak_memory, watch_gradients
from pgdpo.training.noising import Sample, draw_sample
from pgdpo.training.opening import open_pairs, require_images
from pgdpo.training.pairs import check_data, frame_segments, pair_info
from pgdpo.training.trackers import Trackers, check_trackers
from pgdpo.training.validation import Validation
from pgdpo_kernels import PairErrors


class Trainer:
    """One rank's part of a training run.

        last_checkpoint = Trainer(load_config("quickstart.yaml")).train(resume=True)

    Building it loads data and model and raises InputError for anything that a user can mend.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        check_trackers(config)
        self.device = start_ranks(config, clips=config.evaluate.every is not None)
        make_deterministic(config.train.deterministic)
        self.ranks = arrange_ranks(config.train.sequence_parallel, self.device)
        self.accumulation = check_batches(config.train, self.ranks.data_size)
        engines.check_deepspeed(config.train)
        engines.build_operators(config.train)
        self.data = open_pairs(config, "train", stand_in=True)
        check_damage(self.data, config)
        self.objective = build_objective(
            config.objective["name"],
            process_group=None if config.train.deterministic else self.ranks.data_group,
            seed=config.train.seed,
            **config.objective_options,
        )
        check_data(self.objective, config, self.data)
        self.segments = frame_segments(self.objective, config, self.data)
        self.family = open_family(config.model)
        require_images(self.data, self.family)
        self.validation = Validation(config, self.family, self.ranks)  # before any weight is loaded, and
        cached = self._open_cached()
        for size in config.data.sizes:
            self.family.check_clip(*size)
        for shape in self.data.latent_shapes:
            check_sequence_parallel(config, self.family, shape)
        check_memory(config, self.data.latent_shapes, self.device, dist.get_world_size())
        _, transformer = build_policy(config, self.device, ranks=self.ranks)
        references.make_room(transformer, config)
        self.engine = engines.build_engine(transformer, config)
        self.guard = Guard(config, self.data, self.objective, self.engine)
        self.policy = self._build_policy()
        self.reference = cached or self._build_reference()
        self.beta_watch = BetaWatch(self.objective, config.run_dir, self.ranks.data_group)
        self.identity = run_identity(config, self.data)
        self.checkpoints = Checkpoints(
            config.run_dir, keep=config.train.keep_checkpoints, every=config.train.keep_every
        )

    def train(
        self,
        *,
        resume: bool = False,
        restart: bool = False,
        step: int | None = None,
        fallback: bool = True,
        allow_change: Sequence[str] = (),
    ) -> Path:
        """Train to the configured number of steps. Returns the last checkpoint.

        `resume`: go on from the newest valid checkpoint, or from that of `step`, and set aside what came after it;
        `restart`: remove an earlier run of this name first; `fallback`: pass damaged checkpoints over; `allow_change`:
        keys that a resumed run may have changed although it is no longer one run then.
        """
        train = self.config.train
        with (
            StopSignals(self._log_end_at_once) as self.signals,
            Watchdog(self.config.run_dir, train.watchdog_seconds, self.signals) as self.watchdog,
        ):
            done = self._begin(resume, restart, step, fallback, allow_change)
            with failure_logged(self.config.run_dir, lambda: self.watchdog.step):
                return self._train_on(done)

    def _train_on(self, done: int) -> Path:
        """Train from `done` steps to the last one. Returns the last checkpoint."""
        train, run_dir = self.config.train, self.config.run_dir
        self.batches = self._batches(range(done, train.steps))
        loaded = load_batches(self.data, self.batches, workers=self.config.data.workers)
        log = Trackers(self.config, start=done) if dist.get_rank() == 0 else None
        model, signals = self.engine.module, self.signals
        show = functools.partial(self.validation.show, transformer=model, log=log, signals=signals)
        self._say_start(done)
        try:
            with progress_bar(f"train {self.objective.name}", total=train.steps, completed=done) as bar:
                if done:  # a stop may have broken it off
                    show(done)
                while done < train.steps:
                    values = self._step(done, loaded)
                    done += 1
                    if log:
                        log.log(done, values)
                    self.guard.raise_end()
                    bar.advance(note=note(values))
                    self.beta_watch.report(done)
                    show(done)
                    if done % train.checkpoint_every == 0 or done == train.steps:
                        self._save(done)
            last = self._published(done)
        except Stopped as stop:
            traceback.clear_frames(stop.__traceback__)  # they hold activations
            last = self._published(done)
            if done > (step_of(last) if last else 0):
                self._save(done)
                last = self._published(done)
            log_event(run_dir, done, "stopped", f"{stop}; newest checkpoint: {last}")
            unsaved = "" if done == (step_of(last) if last else 0) else ", which found no room to be saved"
            raise Stopped(f"{stop} after step {done}{unsaved}; go on with --resume", stop.code) from stop
        finally:
            loaded.close()
            self.checkpoints.close()
            if log:
                log.close()
        if last is None:
            raise InputError(f"{run_dir}: no room for the last checkpoint: make room and --resume")
        log_event(run_dir, done, "finished", f"last checkpoint: {last}")
        say(f"trained -> {last}; metrics: {run_dir / 'metrics.jsonl'}")
        return last

    def _log_end_at_once(self) -> None:
        text = "Ctrl-C twice: ended at once; what came after the newest checkpoint is lost"
        log_event(self.config.run_dir, self.watchdog.step, "stopped", text)

    def _step(self, step: int, loaded: Iterator[dict]) -> dict:
        """One optimizer step over its micro-batches. Returns what is logged."""
        started = time.perf_counter()
        updates = step - self.guard.skipped
        engines.set_learning_rate(self.engine, engines.learning_rate(self.config.train, updates))
        metrics = StepMetrics(self.device, self.ranks.data_group, sources=self.data.sources)
        for _ in range(self.accumulation):
            self.signals.check()
            self.watchdog.at("reading the data of", step + 1)
            batch = next(loaded)
            self.watchdog.at("computing", step + 1)
            seed_torch(self.config.train.seed, batch["pair_ids"], batch["draw"])
            with each_block(self.watchdog.moved), each_block(self.signals.block):
                output, errors, sigma = self.pair_loss(batch)
                self.guard.see(output, errors, batch)
                watch_gradients(errors)
                norm = self.policy.backward(output.loss)
            metrics.add(pair_metrics(errors, output), sigma, sound_pairs(batch, self.device), batch["rows"])
            self.beta_watch.add(output.logits)
        fault = self.guard.settle(step)
        values = metrics.reduce() | {"gradient_norm": norm, "skipped_steps": self.guard.skipped}
        if fault is None:
            self.reference.follow(step + 1)
        else:
            values |= {"fault": fault.reason, "fault_pairs": fault.pairs, "fault_shares": fault.shares}
            if self.config.train.on_bad_step == "rollback" and not self.guard.ends:
                self._go_back(step + 1)
        self.objective_state = self.objective.state_dict()
        if self.config.train.deterministic:
            check_objective(self.objective)
        return finite_only(values) | self._costs(step, started)

    def _go_back(self, step: int) -> None:
        """Weights, optimizer, objective and reference of the newest checkpoint, where there is one; the data go on."""
        last = self.checkpoints.newest()
        if last is not None:
            self.guard.went_back(step, self._load(last))

    def pair_loss(self, batch: dict) -> tuple[ObjectiveOutput, PairErrors, torch.Tensor]:
        """One micro-batch, as in Diffusion-DPO (arXiv 2311.12908, eq. 14): a pair shares its noise and timestep.

        Returns (the objective's output, the errors, sigma `[B]`).
        """
        cached = self.config.reference_mode == "cached"
        sample = draw_sample(batch, self.config, self.family, self.device, cached=cached)
        if self.config.diffusion.inversion_steps is not None:
            sample = self._inverted(sample)
        where = sample.noisy, sample.both, sample.conditioning
        compare = self.reference.comparison(*where, batch)
        pred = self.policy(*where)
        errors = compare(
            pred,
            sample.target,
            segments=self.segments[sample.latents.shape[2]],
            mask=sample.mask,
            cross=self.objective.needs_cross,
        )
        pairs = pair_info(batch["rows"], sample.sigma * self.family.num_train_timesteps)
        if "masked" in self.objective.needs.pairs:
            pairs = replace(pairs, masked=compare(pred, sample.target, mask=sample.region))
        pairs = without_stand_ins(pairs, batch, self.device)
        self.guard.see_untrained(errors, pairs)
        return self.objective(errors, pairs), errors, sample.sigma

    def _inverted(self, sample: Sample) -> Sample:
        """The sample with the noise that policy or reference finds for it, in place of drawn noise."""
        by_reference = self.objective.options.get("inverted_by") == "reference"
        # By default the policy, as in DDIM-InPO's public code.
        model = self.reference.predict if by_reference else self.policy
        dtype = sample.noisy.dtype
        noisy, target = invert(
            lambda noisy, level: model(noisy.to(dtype), level, sample.conditioning),
            sample.latents,
            sample.both,
            steps=self.config.diffusion.inversion_steps,
        )
        return replace(sample, noisy=noisy.to(dtype), target=target)

    def _build_policy(self) -> pair_batching.Joint:
        train = self.config.train
        joint = (
            functools.partial(Deterministic, max_norm=train.max_grad_norm) if train.deterministic else None
        )
        return pair_batching.build(self.engine, self.family, self.config, self.ranks, joint=joint)

    def _build_reference(self) -> Reference:
        if not self.objective.needs_reference:
            return Reference()
        return references.build_reference(self.config, self.family, self.policy, self.ranks, self.device)

    def _open_cached(self) -> CachedErrors | None:
        if self.config.reference_mode != "cached" or not self.objective.needs_reference:
            return None
        return references.open_cached(self.config, self.family, self.data, self.device)

    def _begin(
        self,
        resume: bool,
        restart: bool,
        step: int | None,
        fallback: bool,
        allow_change: Sequence[str],
    ) -> int:
        """Load the newest valid checkpoint if asked to; never trains over another run. Returns the steps done."""
        run_dir = self.config.run_dir
        self.watchdog.at("starting before", 1)
        if restart and dist.get_rank() == 0:
            remove_run(run_dir)
        agreement.meet()
        last = self.checkpoints.newest(fallback=fallback, step=step)
        if last is not None and not resume:
            raise InputError(
                f"{run_dir}: holds checkpoints of an earlier run: go on from the last one with --resume, remove it "
                "with --restart, or give this run another `name`"
            )
        done = 0
        if last is None and checkpoints_of(run_dir):
            raise InputError(
                f"{run_dir / 'checkpoints'}: none of its checkpoints is whole: bring one back, or begin anew with "
                "--restart"
            )
        if last is not None:
            check_resume(last, read_state(last), self.config, self.identity, allow_change)
            state = self._load(last)
            self.objective_state = state["objective_state"]
            self.guard.load_state_dict(state["guard"])
            done = state["step"]
            self._leave_behind(done, step)
        explain_run(self.config, self.identity, done=done)
        return done

    def _leave_behind(self, done: int, step: int | None) -> None:
        """What came after an earlier step that a run goes on from is put out of the way, and not lost."""
        if dist.get_rank() == 0:
            # Damaged ones that were passed over are removed behind the next valid ones.
            aside = set_aside(self.config.run_dir, done, checkpoints=step is not None)
            if aside is not None:
                say(f" -> {aside}", first=f"what the run has of the steps after {done}")
                told = f"to step {done}; what came after it: {aside.name}"
                log_event(self.config.run_dir, done, "went back", told)
        agreement.meet()

    def _load(self, path: Path) -> dict:
        """Put a checkpoint into engine, objective and reference. Returns its state."""
        state, others = self.checkpoints.load(self.engine, path)
        self.objective.load_state_dict(state["objective_state"])
        self.reference.load_state(others)
        return state

    def _save(self, step: int) -> None:
        """A checkpoint of `step` whole steps; of a step that was broken off it holds nothing."""
        self.watchdog.at("saving", step)
        state = {
            "objective_state": self.objective_state,
            "guard": self.guard.state_dict(),
            **described(self.config, self.identity),
        }
        self.checkpoints.save(self.engine, step, state, extra=self.reference.state)

    def _published(self, step: int) -> Path | None:
        """Wait for what is being published. Returns the newest checkpoint, None where the last one was skipped."""
        self.watchdog.at("publishing", step)
        return self.checkpoints.finish()

    def _batches(self, steps: range) -> StepBatches:
        train = self.config.train
        return StepBatches(
            self.data.order(group=train.micro_batch_pairs, seed=train.seed),
            groups=train.global_batch_pairs // train.micro_batch_pairs,
            rank=self.ranks.data_rank,
            world=self.ranks.data_size,
            steps=steps,
            draws=train.cached_draws if isinstance(self.reference, CachedErrors) else None,
            in_order=train.deterministic,
        )

    @functools.cached_property
    def _flops(self) -> list[int]:
        """Model FLOPs of one pair of each bucket."""
        runs = isinstance(self.reference, Live)
        counted = [SampleFlops(self.family, self.config, shape) for shape in self.data.latent_shapes]
        return [2 * each.model(self.config, reference_runs=runs) for each in counted]

    def _costs(self, step: int, started: float) -> dict:
        """Learning rate, speed, memory (bytes) and MFU of the step begun at `started`."""
        seconds = time.perf_counter() - started
        pairs, group = self.config.train.global_batch_pairs, self.config.train.micro_batch_pairs
        buckets = self.batches.buckets(step)
        sizes = [self.family.tokens(shape) for shape in self.data.latent_shapes]
        tokens = 2 * group * sum(sizes[bucket] for bucket in buckets)
        flops = group * sum(self._flops[bucket] for bucket in buckets)
        return {
            "learning_rate": self.engine.optimizer.param_groups[0]["lr"],
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": tokens / seconds,
            "mfu": utilisation(flops / seconds, self.device, dist.get_world_size()),
            "peak_memory": peak_memory(self.device),
            "seconds": seconds,
        }

    def _say_start(self, done: int) -> None:
        sizes = [
            (getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in self.engine.module.parameters()
        ]
        trained = sum(size for size, trains in sizes if trains)
        steps, batch = self.config.train.steps, self.config.train.global_batch_pairs
        say(
            f"{self.objective.name}: {len(self.data)} pairs, {steps} steps of {batch} pairs on "
            f"{dist.get_world_size()} rank(s); {trained:,} of {sum(size for size, _ in sizes):,} parameters train"
            + (f"; resuming after step {done}" if done else "")
        )
        for line in (*self.data.described_shares(steps * batch), *self.objective.notes(self.data.rows[0])):
            say(line)
        for kept in self.data.curation:
            say(f"data.select {kept}")
            log_event(self.config.run_dir, done, "selection", str(kept))
        if self.objective.needs.data and self.objective.needs.noisy == "drawn":
            say(f"{self.objective.name} expects {self.objective.needs.data}; this is not checked")
        say_beta(self.objective, math.prod(self.data.latent_shape))
