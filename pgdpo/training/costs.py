"""What a step costs: speed, share of the hardware's peak, memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch.distributed as dist

from pgdpo.config import Config
from pgdpo.data.visits.source import GroupSource
from pgdpo.engine.group_batching import Joint
from pgdpo.planning.costs.flops import SampleFlops, utilisation
from pgdpo.training.metrics import peak_memory


class Costs:
    """Of steps of one run on these groups. `reference_runs`: the reference makes forwards."""

    def __init__(self, config: Config, policy: Joint, groups: GroupSource, *, reference_runs: bool) -> None:
        self._config, self._family, self._device = config, policy.family, policy.ranks.device
        self._shapes, self._sizes = groups.stream_shapes, groups.group_sizes
        self._reference_runs = reference_runs

    def of(self, buckets: Sequence[int], seconds: float) -> dict:
        """Speed, MFU, memory (bytes) of a step that took `seconds`; `buckets`: of its micro-batches, over all ranks."""
        train = self._config.train
        tokens = sum(self._sizes[bucket] * self._tokens(bucket) for bucket in buckets)
        flops = train.micro_batch_groups * sum(self._flops[bucket] for bucket in buckets)
        return {
            "pairs_per_second": train.global_batch_groups / seconds,
            "tokens_per_second": train.micro_batch_groups * tokens / seconds,
            "mfu": utilisation(flops / seconds, self._device, dist.get_world_size()),
            "peak_memory": peak_memory(self._device),
            "seconds": seconds,
        }

    def _tokens(self, bucket: int) -> int:
        return sum(self._family.stream_tokens(self._shapes[bucket]).values())

    @functools.cached_property
    def _flops(self) -> list[int]:
        """Model FLOPs of one group of each bucket; counted when the first step is done, which is not held up by it."""
        counted = [SampleFlops(self._family, self._config, shape) for shape in self._shapes]
        how = {"reference_runs": self._reference_runs}
        return [
            size * each.model(self._config, **how) for size, each in zip(self._sizes, counted, strict=True)
        ]
