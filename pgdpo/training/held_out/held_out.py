"""What training sees of held-out data on its way: figures and clips, every `evaluate.every` steps."""

from __future__ import annotations

import json
import time

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pgdpo.checkpoints.best import read_held_out
from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs, mean_group_size
from pgdpo.diffusion.streams import Shapes, elements
from pgdpo.engine.group_batching import Joint
from pgdpo.engine.parallel import Ranks
from pgdpo.files.atomic import atomic_path
from pgdpo.guards.signals import StopSignals
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import stage
from pgdpo.models.family import Family
from pgdpo.objectives import Objective
from pgdpo.planning.costs.flops import SampleFlops
from pgdpo.planning.costs.held_out import pairs_to_measure
from pgdpo.ranks import agreement
from pgdpo.reference import Forward, Live, Reference, adapter_off
from pgdpo.training.held_out.clips import Clips
from pgdpo.training.held_out.measure import Measure, Sums, measurable
from pgdpo.training.metrics import finite_only
from pgdpo.training.opening import open_pairs, require_images
from pgdpo.training.trackers import Trackers

BASELINE = "held_out.safetensors"  # the errors of the model that the run began with


class HeldOut:
    """A run's looks at held-out data: at its start, every `evaluate.every` steps, and at its last one.

    Opening it loads no weights; all ranks do it together. `config`: the run's, with `evaluate.every_pairs` as it was
    decided; `other`: the part of the expert that another trainer has, as it stands when clips are sampled. Raises
    InputError for held-out pairs that cannot be used.
    """

    def __init__(
        self,
        config: Config,
        family: Family,
        train: PreparedPairs,
        ranks: Ranks,
        *,
        reference_runs: bool,
        other: Config | None = None,
    ) -> None:
        self.config, self.seconds = config, 0.0
        self.newest: dict = {}
        self._every = config.evaluate.every
        self._trained = mean_group_size(train)
        self._measure: Measure | None = None
        if self._every is None:
            return
        self._data = open_pairs(config, "held_out")
        require_images(self._data, family)
        self._clips = Clips(config, family, self._data, ranks, other) if config.evaluate.shows_clips else None
        if not measurable(self._data):
            say("held out: single clips, or equally good ones, have no margin: no figures of them")
            self._set_pairs(0)
        elif config.evaluate.every_pairs != 0:
            self._decide(family, max(train.stream_shapes, key=elements), reference_runs)

    def _decide(self, family: Family, shapes: Shapes, reference_runs: bool) -> None:
        """The number of pairs; FLOPs are counted for clips of `shapes`."""
        config, data = self.config, self._data
        sizes = zip(data.stream_shapes, data.buckets, data.group_sizes, strict=True)
        mean = sum(elements(each) * len(bucket) * size for each, bucket, size in sizes) / len(data)
        flops = SampleFlops(family, config, shapes)
        about = {"of": len(measurable(data)), "samples": mean / elements(shapes), "group_size": self._trained}
        about["reference_runs"] = reference_runs
        count, share = agreement.on_main(lambda: pairs_to_measure(config, flops, **about))
        self._set_pairs(count)
        say(
            f"held out: {count} of {len(data)} {data.kind}s at {config.evaluate.draws_per_pair} noise levels, measured "
            f"every {self._every} steps: {share:.1%} of the run's time by the plan"
        )

    def _set_pairs(self, count: int) -> None:
        evaluate = self.config.evaluate.model_copy(update={"every_pairs": count})
        self.config = self.config.model_copy(update={"evaluate": evaluate})

    @property
    def group_size(self) -> int:
        """Samples of the largest group that is measured."""
        return 2 if self._every is None else max(self._data.group_sizes)

    def begin(
        self,
        policy: Joint,
        reference: Reference,
        objective: Objective,
        done: int,
        log: Trackers,
        signals: StopSignals,
    ) -> None:
        """Find the errors of the model that the run began with: before its first step, or where they were kept.

        Raises InputError on all ranks where they were not kept and that model is not there any more, Stopped as `look`.
        """
        if self._every is None or not self.config.evaluate.every_pairs:
            return
        count = self.config.evaluate.every_pairs
        self._measure = Measure(self.config, policy, self._data, count, objective)
        if self._measure.no_loss:
            say(f": {self._measure.no_loss}", first="no loss of held-out pairs")
        self._baseline = agreement.on_main(self._kept) if done else None
        if self._baseline is None:
            stage("held-out pairs, the model that the run began with")
            began = time.perf_counter()
            self._baseline = self._measure.sums(self._start(policy, reference, done), signals)
            self.seconds += time.perf_counter() - began
            agreement.on_main(self._keep)
        if not done:
            self._figures(0, log, signals)

    def look(
        self, step: int, transformer: torch.nn.Module, log: Trackers, signals: StopSignals
    ) -> dict | None:
        """The figures after a step that is due and was not looked at yet, else None; its clips are shown, too.

        Raises Stopped on all ranks, within a block's or a denoising step's time, if one of them was signalled.
        """
        if not self.due(step):
            return None
        figures = None
        if self._measure is not None and not agreement.on_main(lambda: self._is_written(step)):
            figures = self._figures(step, log, signals)
        if self._clips is not None:
            self._clips.show(step, transformer, log, signals)
        return figures

    def due(self, step: int) -> bool:
        """Whether a step is one of those that are looked at."""
        return self._every is not None and (step % self._every == 0 or step == self.config.train.steps)

    def say_share(self, seconds: float) -> None:
        """What the figures took of a training that took so many seconds."""
        if self.seconds:
            say(f"held out: figures took {self.seconds:.1f} s, {self.seconds / seconds:.1%} of the training")

    def _figures(self, step: int, log: Trackers, signals: StopSignals) -> dict:
        stage("held-out pairs")
        began = time.perf_counter()
        figures = finite_only(self._measure.numbers(self._baseline, signals).figures())
        figures["seconds"] = round(time.perf_counter() - began, 3)
        self.seconds += figures["seconds"]
        self.newest = figures
        log.held_out(step, figures)
        return figures

    def _start(self, policy: Joint, reference: Reference, done: int) -> Forward:
        """A forward of the model that the run began with."""
        adapter, stands = self.config.model.adapter, self.config.reference_mode in ("adapter", "frozen")
        if isinstance(reference, Live) and (stands or not done):
            return reference.predict
        if adapter is not None and not adapter.reference_starts_at_init:
            return adapter_off(policy.engine.module, policy)
        if not done:
            return policy
        raise InputError(
            f"{self.config.run_dir / BASELINE}: not there, or of other held-out pairs than evaluate.* names now, and "
            f"after {done} steps the model that the run began with is not there any more: set evaluate.every_pairs to "
            "0, or begin anew with --restart or another `name`"
        )

    def _is_written(self, step: int) -> bool:
        return any(row["step"] == step for row in read_held_out(self.config.run_dir))

    def _keep(self) -> None:
        tensors = {f"{number:05d}": sums for number, sums in enumerate(self._baseline)}
        with atomic_path(self.config.run_dir / BASELINE) as temporary:
            save_file(tensors, temporary, {"key": json.dumps(self._measure.key)})

    def _kept(self) -> Sums | None:
        """What `_keep` wrote; None where it is of other pairs, or is not there."""
        path = self.config.run_dir / BASELINE
        try:
            with safe_open(path, "pt") as file:
                if json.loads((file.metadata() or {}).get("key", "null")) != self._measure.key:
                    return None
                return [file.get_tensor(name) for name in sorted(file.keys())]  # noqa: SIM118, it is no dict
        except (OSError, SafetensorError, ValueError):
            return None
