"""What a step costs: speed, share of the hardware's peak, memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch.distributed as dist

from pgdpo.config import Config
from pgdpo.engine.pair_batching import Joint
from pgdpo.planning.costs.flops import SampleFlops, utilisation
from pgdpo.training.metrics import peak_memory


class Costs:
    """Of steps of one run. `shapes`: of each bucket's latents, (C, F, H, W); `reference_runs`: it makes forwards."""

    def __init__(
        self, config: Config, policy: Joint, shapes: Sequence[tuple[int, ...]], *, reference_runs: bool
    ) -> None:
        self._config, self._family, self._device = config, policy.family, policy.ranks.device
        self._shapes, self._reference_runs = shapes, reference_runs

    def of(self, buckets: Sequence[int], seconds: float) -> dict:
        """Speed, MFU, memory (bytes) of a step that took `seconds`; `buckets`: of its micro-batches, over all ranks."""
        train = self._config.train
        tokens = 2 * sum(self._family.tokens(self._shapes[bucket]) for bucket in buckets)
        flops = train.micro_batch_pairs * sum(self._flops[bucket] for bucket in buckets)
        return {
            "pairs_per_second": train.global_batch_pairs / seconds,
            "tokens_per_second": train.micro_batch_pairs * tokens / seconds,
            "mfu": utilisation(flops / seconds, self._device, dist.get_world_size()),
            "peak_memory": peak_memory(self._device),
            "seconds": seconds,
        }

    @functools.cached_property
    def _flops(self) -> list[int]:
        """Model FLOPs of one pair of each bucket; counted when the first step is done, which is not held up by it."""
        counted = [SampleFlops(self._family, self._config, shape) for shape in self._shapes]
        return [2 * each.model(self._config, reference_runs=self._reference_runs) for each in counted]
