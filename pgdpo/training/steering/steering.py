"""A run's steering: what `train.steer`'s rules decide after each look at held-out pairs, put into the objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pgdpo.checkpoints.events import log_event
from pgdpo.config import Config
from pgdpo.messages.console import say
from pgdpo.objectives import Objective
from pgdpo.training.held_out.figures import value_of
from pgdpo.training.steering import rules

# Of an event: the figures that were decided by.
TOLD = ("loss", "implicit_accuracy", "margin", "displacement", "saturation")


class Steering:
    """Call `look` with every look's figures, on all ranks, which decide alike; `ended`: why the run stops, or None.

    What it sets are numbers in the objective's options, which no kernel is compiled for.
    """

    def __init__(self, config: Config, objective: Objective) -> None:
        self._rules, self._run_dir, self._options = config.train.steer, config.run_dir, objective.options
        self._every = config.evaluate.every
        self._patience = rules.Patience()
        self.looked = 0  # the last step whose figures were decided by
        self.ended: str | None = None

    @property
    def _sets(self) -> dict[str, str]:
        """Rule -> the option that it sets, of those that are on."""
        sets = {"lower_beta": "beta", "raise_beta": "beta", "sft_weight": "chosen_pull"}
        return {rule: option for rule, option in sets.items() if getattr(self._rules, rule) is not None}

    def look(self, step: int, figures: dict) -> None:
        """Decide what holds from the next step on; each decision is said, and an event with its numbers.

        A look at the last step alone decides nothing: a run that goes on from there is as one that never ended there.
        """
        self.looked = step
        if step % self._every:
            return
        for rule, option in self._sets.items():
            change = getattr(rules, rule)(getattr(self._rules, rule), self._options[option], figures)
            if change is not None:
                self._options[option] = change.after
                self._log(step, rule, change, figures)
        if self._rules.stop is not None:
            self.ended = rules.stop(self._rules.stop, self._patience, figures)

    def values(self) -> dict[str, float]:
        """What a step's metrics have of it."""
        names = {"beta": "steer/beta", "chosen_pull": "steer/sft_weight"}
        return {names[option]: self._options[option] for option in dict.fromkeys(self._sets.values())}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to decide as this one would; JSON's values."""
        options = {option: self._options[option] for option in self._sets.values()}
        patience = asdict(self._patience)
        return {"looked": self.looked, "options": options, "patience": patience, "ended": self.ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Also nothing, of a run that was not steered so far."""
        known = {key: value for key, value in state.get("options", {}).items() if key in self._sets.values()}
        self._options.update(known)
        self.looked = state.get("looked", 0)
        self._patience = rules.Patience(**state.get("patience", {}))
        self.ended = state.get("ended") if self._rules.stop is not None else None

    def _log(self, step: int, rule: str, change: rules.Change, figures: dict) -> None:
        name = "beta" if rule.endswith("_beta") else "sft_weight"
        message = f"{name} {change.before:.4g} -> {change.after:.4g}: {change.why}"
        say(f": {message}", first=f"step {step}, {rule}")
        told = {figure: value_of(figures, figure) for figure in TOLD}
        log_event(
            self._run_dir, step, "steer", message, rule=rule, before=change.before, after=change.after, **told
        )
