"""What a run learns from: prepared groups and the objective that reads them, checked before any weight is loaded."""

from __future__ import annotations

from pgdpo.config import Config
from pgdpo.data.visits.batches import StepBatches, check_batches
from pgdpo.engine.parallel import Ranks
from pgdpo.guards.bad_steps import check_damage
from pgdpo.objectives import build_objective
from pgdpo.training.opening import open_pairs
from pgdpo.training.task.checks import check_data, frame_segments


class Task:
    """What a run is given to learn: `pairs`, the `objective` that compares them, and the `segments` that it reads.

    Opening it loads no weights; all ranks do it together. Raises InputError for pairs that are damaged, or lack what
    the objective needs.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self._train, self._ranks = config.train, ranks
        self.micro_batches = check_batches(config.train, ranks.data_size)  # of one step, on this rank
        self.pairs = open_pairs(config, "train", stand_in=True)
        check_damage(self.pairs, config)
        self.objective = build_objective(
            config.objective["name"],
            process_group=None if config.train.deterministic else ranks.data_group,
            seed=config.train.seed,
            parts=config.objective.get("parts"),
            **config.objective_options,
            **config.train.steer.options,
        )
        check_data(self.objective, config, self.pairs)
        self.segments = frame_segments(self.objective, config, self.pairs)
        self.cached = config.reference_mode == "cached" and self.objective.needs_reference

    def batches(self, steps: range) -> StepBatches:
        """This rank's groups of these steps; against cached errors a group's draws come again."""
        train, ranks = self._train, self._ranks
        return StepBatches(
            self.pairs.order(micro_batch=train.micro_batch_groups, seed=train.seed),
            micro_batches=train.global_batch_groups // train.micro_batch_groups,
            rank=ranks.data_rank,
            world=ranks.data_size,
            steps=steps,
            draws=train.cached_draws if self.cached else None,
            in_order=train.deterministic,
        )
