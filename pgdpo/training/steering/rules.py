"""The rules of `train.steer`, each a pure function of a look's figures and of what it decided before."""

from __future__ import annotations

from dataclasses import dataclass

from pgdpo.config.train import LESS_IS_BETTER, LowerBetaRule, RaiseBetaRule, SftWeightRule, StopRule
from pgdpo.training.held_out.figures import value_of


@dataclass(frozen=True)
class Change:
    """A number that a rule sets anew, and why."""

    before: float
    after: float
    why: str


def lower_beta(rule: LowerBetaRule, beta: float, figures: dict) -> Change | None:
    """beta times `factor` where more than the target share of held-out logits are saturated."""
    saturated = value_of(figures, "saturation")
    if saturated is None or saturated <= rule.saturated or beta <= rule.least:
        return None
    why = f"{saturated:.0%} of held-out logits are saturated (above {rule.saturated:.0%})"
    return Change(beta, max(rule.least, rule.factor * beta), why)


def raise_beta(rule: RaiseBetaRule, beta: float, figures: dict) -> Change | None:
    """beta times `factor` where fewer than the target share of held-out logits are saturated."""
    saturated = value_of(figures, "saturation")
    if saturated is None or saturated >= rule.saturated or beta >= rule.most:
        return None
    why = f"{saturated:.0%} of held-out logits are saturated (below {rule.saturated:.0%})"
    return Change(beta, min(rule.most, rule.factor * beta), why)


def sft_weight(rule: SftWeightRule, weight: float, figures: dict) -> Change | None:
    """An integral controller: the weight grows by gain * (displacement - target), within 0 and `most`."""
    displaced = value_of(figures, "displacement")
    if displaced is None:
        return None
    after = min(rule.most, max(0.0, weight + rule.gain * (displaced - rule.displacement)))
    if after == weight:
        return None
    why = f"{displaced:.0%} of held-out chosen clips became less likely (target {rule.displacement:.0%})"
    return Change(weight, after, why)


@dataclass
class Patience:
    """`stop.patience`'s state: the best of its figure, and how many looks in a row were none better."""

    best: float | None = None
    waited: int = 0

    def look(self, value: float | None, *, less_is_better: bool) -> None:
        """A figure without a number is none better."""
        better = value is not None and (
            self.best is None or (value < self.best if less_is_better else value > self.best)
        )
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)


def stop(rule: StopRule, patience: Patience, figures: dict) -> str | None:
    """Why the run ends here, in words; None if it goes on. `patience` is moved on."""
    patience.look(value_of(figures, rule.figure), less_is_better=LESS_IS_BETTER[rule.figure])
    displaced, accurate = (
        value_of(figures, "displacement", "low"),
        value_of(figures, "implicit_accuracy", "high"),
    )
    if rule.displacement is not None and displaced is not None and displaced > rule.displacement:
        value = value_of(figures, "displacement")
        return (
            f"{value:.0%} of held-out chosen clips became less likely, {displaced:.0%} at least (train.steer.stop."
            f"displacement {rule.displacement:.0%})"
        )
    if rule.accuracy is not None and accurate is not None and accurate < rule.accuracy:
        value = value_of(figures, "implicit_accuracy")
        return (
            f"{value:.0%} of held-out pairs are told apart as labelled, {accurate:.0%} at most (train.steer.stop."
            f"accuracy {rule.accuracy:.0%})"
        )
    if rule.patience is not None and patience.waited >= rule.patience:
        best = "no value" if patience.best is None else f"{patience.best:.4g}"
        return (
            f"{patience.waited} look(s) in a row without a better held-out {rule.figure} than {best} (train.steer.stop."
            f"patience {rule.patience})"
        )
    return None
