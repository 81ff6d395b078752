"""What a loss is held against: a spike is one far above the run's own scale, whatever the objective."""

from __future__ import annotations

import statistics
from collections import deque

WINDOW = 100  # steps whose losses the running median is of
FIRST = 10  # steps of which the other two are known; before them nothing is a spike
LOWEST = 0.1  # of the first losses' median: what the state before this one kept as its `floor`


class LossScale:
    """The largest of three numbers, so that a loss that became small makes no normal one a fault.

    * the running median of |loss|: what this run has come to, where that is more than it began with;
    * |the untrained loss|: to it comes back any pair that the policy has not learnt, however low the others are (ln 2
      for DPO, where a run may stand at 0.001);
    * the spread of the first losses: all there is of a scale where losses of both signs cancel.
    """

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._first: list[float] = []
        self._untrained: list[float] = []  # of the same steps

    @property
    def known(self) -> bool:
        return len(self._first) == FIRST

    def add(self, loss: float, untrained: float) -> None:
        """The losses of a step that was taken; `untrained`: of the same pairs, where the policy is the reference.

        The untrained loss is not the first step's: a policy may begin from an adapter that was trained before. And it
        is the mean of several steps', since many objectives' depends on the pairs and their noise.
        """
        if not self.known:
            self._first.append(loss)
            self._untrained.append(abs(untrained))
        self._losses.append(abs(loss))

    def parts(self) -> dict[str, float]:
        """The three numbers; empty until they are known."""
        if not self.known:
            return {}
        return {
            "running median": statistics.median(self._losses),
            "untrained loss": statistics.fmean(self._untrained),
            "spread of the first steps": max(self._first) - min(self._first),
        }

    def spike(self, loss: float, factor: float) -> str | None:
        """In words, by how much the loss is above `factor` times the scale; None if it is not."""
        parts = self.parts()
        name = max(parts, key=parts.get, default=None)
        # All three are 0 where an objective has no loss to begin with: then nothing can be said.
        if name is None or not 0 < parts[name] < abs(loss) / factor:
            return None
        return (
            f"the loss {loss:.4g} is {abs(loss) / parts[name]:.0f} times its scale "
            f"({parts[name]:.4g}, the {name}; train.spike_factor {factor:g})"
        )

    def state_dict(self) -> dict:
        return {"losses": list(self._losses), "first": self._first, "untrained": self._untrained}

    def load_state_dict(self, state: dict) -> None:
        """Also a state that knows the first losses by their `floor` alone: in a fresh run these are the untrained."""
        self._losses = deque(state["losses"], maxlen=WINDOW)
        if "first" in state:
            self._first, self._untrained = list(state["first"]), list(state["untrained"])
            return
        floor = state["floor"]
        self._first = list(state["losses"]) if floor is None else FIRST * [floor / LOWEST]
        self._untrained = list(self._first)
