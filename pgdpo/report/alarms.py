"""What a run's numbers warn of: each known failure of preference training as a threshold and a plain sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pgdpo.guards.common_rise import EVENT as COMMON_RISE
from pgdpo.messages.formats import is_number
from pgdpo.objectives.parts import Parts
from pgdpo.training.held_out.statistics import share
from pgdpo.training.panels import PARTS, parts_of, value_of

DISPLACEMENT = 0.5  # share of pairs; above it more chosen clips became less likely than more likely
ACCURACY = 0.55  # share of pairs told apart; a coin reaches 0.5
SATURATION = 4.0  # mean logit; the sigmoid's slope has fallen to 1.8% of a pair's weight there
REJECTED_SHARE = 0.6  # of the two halves' gradient norms; plain DPO starts at a half
PART_SHARE = 0.95  # of the gradient; a part that has more leaves nothing to the others
REWARD_FALL = 0.02  # of a component's score in [0, 1], below which a change is taken for noise
TAIL = 0.1  # share of the last steps that stands for the end of a run


@dataclass(frozen=True)
class Alarm:
    """One thing to look at. `state`: ok, warning, open (its interval lies on both sides of the threshold) or unknown
    (nothing measured); `value`: what was measured."""

    title: str
    state: str
    value: str
    meaning: str
    threshold: str


def alarms(
    metrics: list[dict],
    results: dict,
    beta: float | None,
    *,
    looks: Sequence[dict] = (),
    events: Sequence[dict] = (),
    kind: str = "pair",
    parts: Parts | None = None,
) -> list[Alarm]:
    """Judge a run.

    Args:
        metrics: rows of `metrics.jsonl`; names that an objective does not log may be missing.
        results: `results.json`; its held-out numbers are taken where it has them, else those of the newest of `looks`,
            else the run's last tenth.
        beta: the objective's beta, None for one without.
        looks, events: rows of `held_out.jsonl` and `events.jsonl`.
        kind: `pair` or `group`, what the run's data are; of a group, chosen is its best clip and rejected its worst.
        parts: the run's `objective.parts`, of samples of several parts.
    """
    common_rise = [_common_rise(metrics, events)] if results.get("objective") == "pg_dpo" else []
    whole = _displacement(_held_out(results, looks, "displacement"), metrics, kind)
    return [
        whole,
        _accuracy(_held_out(results, looks, "implicit_accuracy"), metrics, kind),
        *_displaced_parts(whole, metrics, results, looks, kind, parts or Parts()),
        *_gradient_of_parts(metrics, parts or Parts()),
        *common_rise,
        _saturation(metrics, beta, parts or Parts()),
        _rejected_share(metrics),
        _reward_parts(results.get("reward")),
        _finite(metrics),
    ]


def tail(metrics: list[dict]) -> list[dict]:
    """A run's end: the last tenth of its steps, at least five."""
    return metrics[-max(5, math.ceil(TAIL * len(metrics))) :]


def tail_mean(metrics: list[dict], name: str, bucket: str | None = None) -> float | None:
    """Mean of a metric over the run's end; None where it was never logged."""
    rows = tail(metrics)
    if bucket is not None:
        rows = [row["buckets"][bucket] for row in rows if bucket in row.get("buckets", {})]
    return _mean(rows, name)


def _mean(rows: Sequence[dict], name: str) -> float | None:
    values = [value for row in rows if is_number(value := value_of(row, name))]
    return sum(values) / len(values) if values else None


def _displacement(held_out: dict, metrics: list[dict], kind: str) -> Alarm:
    return _judged_share(
        "Likelihood displacement",
        held_out or {"value": tail_mean(metrics, "displacement")},
        lambda share: share > DISPLACEMENT,
        "How often the model now explains the chosen clip worse than the reference did. Above a half, training makes "
        "the preferred clips less likely, even while the margin grows.",
        f"warns above {DISPLACEMENT:.0%}",
        kind,
    )


def _accuracy(held_out: dict, metrics: list[dict], kind: str) -> Alarm:
    return _judged_share(
        "Implicit accuracy",
        held_out or {"value": tail_mean(metrics, "implicit_accuracy")},
        lambda share: share < ACCURACY,
        "How often the model's own preference agrees with the label. Near 50% it cannot tell chosen from rejected: "
        "too few steps, too small a learning rate, or labels that are noise.",
        f"warns below {ACCURACY:.0%}",
        kind,
    )


def _displaced_parts(
    whole: Alarm, metrics: list[dict], results: dict, looks: Sequence[dict], kind: str, parts: Parts
) -> list[Alarm]:
    """Of samples of several parts each one's; the whole may look well while one of them falls."""
    found = []
    mend = (
        "In one sigmoid another part may make up for it: raise its weight in `objective.parts`, or give each its own, "
        "`form: separate`."
        if parts.form == "inside"
        else "Raise its weight in `objective.parts`, or look at its pairs' labels: `dimensions` may rate it by itself."
    )
    for part in parts_of([*metrics, *looks, results]):
        own = [row[PARTS][part] for row in looks if part in (row.get(PARTS) or {})]
        held_out = _held_out((results.get(PARTS) or {}).get(part) or {}, own, "displacement")
        alarm = _judged_share(
            f"Likelihood displacement, {part}",
            held_out or {"value": tail_mean(metrics, f"{PARTS}/{part}/displacement")},
            lambda share: share > DISPLACEMENT,
            f"How often the model now explains the chosen clip's {part} worse than the reference did. {mend}",
            f"warns above {DISPLACEMENT:.0%}",
            kind,
        )
        if alarm.state == "warning" and whole.state == "ok":
            alarm = replace(alarm, value=f"{alarm.value}, while the whole looks well")
        found.append(alarm)
    return found


def _gradient_of_parts(metrics: list[dict], parts: Parts) -> list[Alarm]:
    """Whether one part has nearly all of the gradient in the run's last quarter, and the weight that would balance."""
    rows = metrics[-math.ceil(len(metrics) / 4) :]
    weighed = [part for part in parts_of(metrics) if parts.weight(part)]
    shares = {part: _mean(rows, f"{PARTS}/{part}/gradient_share") for part in weighed}
    shares = {part: share for part, share in shares.items() if share is not None}
    if len(weighed) < 2:
        return []
    top = max(shares, key=shares.get, default=None)

    def shown(share: float) -> str:
        balanced = parts.weight(top) * (1 - share) / share / (len(weighed) - 1)
        advice = (
            f"; objective.parts.{top} {balanced:.2g} would give it as much as another" if balanced else ""
        )
        return f"{share:.1%} of the last quarter's is {top}'s" + (advice if share > PART_SHARE else "")

    return [
        _judged(
            "Gradient of the parts",
            shares.get(top),
            lambda share: share > PART_SHARE,
            shown,
            "How the update divides between the parts, by the norms of the loss's gradient by each one's prediction. A "
            "part that has nearly all of it is the only one that learns from the preferences.",
            f"warns above {PART_SHARE:.0%}",
        )
    ]


def _saturation(metrics: list[dict], beta: float | None, parts: Parts) -> Alarm:
    names = sorted({bucket for row in metrics for bucket in row.get("buckets", {})})
    separate = [part for part in parts_of(metrics) if parts.form == "separate" and parts.weight(part)]
    logits = {}
    for part in (separate or [None]) if beta is not None else []:  # the logits of one sigmoid each
        logits |= {(name, part): _mean_logit(metrics, name, beta, part) for name in names}
    logits = {name: logit for name, logit in logits.items() if logit is not None}
    top = max(logits, key=logits.get, default=None)
    return _judged(
        "Saturated logits",
        logits.get(top),
        lambda v: v > SATURATION,
        lambda v: f"mean logit{f' of {top[1]}' * bool(top[1])} {v:.2g} at {bucket_label(top[0])}",
        "The logit, ½·β·margin, is what the sigmoid sees (PG-DPO scales the rejected reward by α first). Once it is "
        "large the sigmoid is flat and pairs stop teaching: lower β, or keep a term on the chosen clip alive.",
        f"warns above {SATURATION:g}, where the slope is 1.8%",
    )


def _mean_logit(metrics: list[dict], bucket: str, beta: float, part: str | None) -> float | None:
    """½·β·ω·(r_w − α·r_l) at the means of the run's end, of whole samples or of a part that has its own sigmoid; None
    without a reference, where there are no rewards."""
    start = "" if part is None else f"{PARTS}/{part}/"
    chosen, rejected, alpha, omega = (
        tail_mean(metrics, start + name, bucket)
        for name in ("reward/chosen", "reward/rejected", "ars/alpha", "timestep_weight")
    )
    if chosen is None or rejected is None:
        return None
    return (
        0.5
        * beta
        * (1.0 if omega is None else omega)
        * (chosen - (1.0 if alpha is None else alpha) * rejected)
    )


def _rejected_share(metrics: list[dict]) -> Alarm:
    return _judged(
        "Gradient of the rejected half",
        tail_mean(metrics, "gradient_share/rejected"),
        lambda v: v > REJECTED_SHARE,
        lambda v: f"{v:.0%} of the last steps' gradient",
        "How much of the update comes from pushing rejected clips away. When it dominates, the model mostly unlearns, "
        "and similar chosen clips are pushed down too.",
        f"warns above {REJECTED_SHARE:.0%}",
    )


def _reward_parts(reward: dict | None) -> Alarm:
    before, after = (reward or {}).get("reference") or {}, (reward or {}).get("aligned") or {}
    change = {name: after[name] - before[name] for name in before if name in after}
    worst = min(change, key=change.get, default=None)
    return _judged(
        "Every part of the reward",
        change.get(worst),
        lambda v: v < -REWARD_FALL,
        lambda v: f"smallest change: {worst} {v:+.3f}".replace("-", "−"),
        "A total can rise while one of its parts falls: look there for what the model gave up.",
        f"warns when a part falls by more than {REWARD_FALL:g}",
    )


def _finite(metrics: list[dict]) -> Alarm:
    bad = [
        row["step"]
        for row in metrics
        if any(isinstance(v, float) and not is_number(v) for v in row.values())
        # JSON has no word for them: the step's loss, which every objective has, is then null
        or row.get("loss", 0.0) is None
    ]
    skipped = metrics[-1].get("skipped_steps", 0) if metrics else 0
    found = f"first at step {bad[0]}, in {len(bad)} of {len(metrics)} steps" if bad else "none"
    if skipped:
        found += f"; {skipped} steps were not taken"
    return Alarm(
        "Non-finite numbers",
        "unknown" if not metrics else "warning" if bad or skipped else "ok",
        found if metrics else "not measured",
        "A NaN or an infinity in a logged number: nothing after it can be trusted. Steps that the guards did not take "
        "are among what happened, with their pairs.",
        "warns at the first",
    )


def bucket_label(name: str | None) -> str:
    """`sigma_0.25_0.50` -> `σ 0.25–0.50`."""
    parts = (name or "").split("_")
    return f"σ {parts[1]}–{parts[2]}" if len(parts) == 3 else str(name)


def _common_rise(metrics: list[dict], events: Sequence[dict]) -> Alarm:
    said = next((row for row in events if row["event"] == COMMON_RISE), None)
    return Alarm(
        "What the loss falls by",
        "unknown" if not metrics else "ok" if said is None else "warning",
        "not measured"
        if not metrics
        else "the margin"
        if said is None
        else f"by what both clips share, seen at step {said['step']}",
        "PG-DPO's loss also falls where both clips of a pair become likelier alike, and then nothing is learnt of the "
        "labels: fit the model to the clips first, or set `objective.ars` to `none`.",
        "warns where the margin makes less than a tenth of the logit",
    )


def _held_out(results: dict, looks: Sequence[dict], figure: str) -> dict:
    """A share of held-out pairs with `low`, `high` and `pairs`, as it was measured last; empty where it never was."""
    judged = results.get("displacement") or {}
    value = judged.get("value" if figure == "displacement" else figure)
    if is_number(value):
        pairs = judged.get("pairs")
        found = share(value * pairs, pairs) if pairs else {"value": value}
        return found | {"pairs": pairs}
    newest = looks[-1] if looks else {}
    found = newest.get(figure) or {}
    return {**found, "pairs": newest["pairs"]} if is_number(found.get("value")) else {}


def _judged_share(
    title: str, found: dict, alarming: Callable[[float], bool], meaning: str, threshold: str, kind: str
) -> Alarm:
    """Of held-out data, whose interval must lie on one side of the threshold; of training data as it is."""
    value, bounds = found["value"], [found.get("low"), found.get("high")]
    if value is None or "pairs" not in found:
        return _judged(
            title,
            value,
            alarming,
            lambda v: f"{v:.0%} of the last steps' training {kind}s",
            meaning,
            threshold,
        )
    shown = f"{value:.0%} of {found['pairs'] or ''} held-out {kind}s".replace("  ", " ")
    if None in bounds:
        return Alarm(title, "warning" if alarming(value) else "ok", shown, meaning, threshold)
    shown += f" (95%: {bounds[0]:.0%} to {bounds[1]:.0%})"
    verdicts = {alarming(bound) for bound in bounds}
    if len(verdicts) == 2:
        return Alarm(title, "open", f"{shown}: not enough to say", meaning, threshold)
    return Alarm(title, "warning" if verdicts == {True} else "ok", shown, meaning, threshold)


def _judged(
    title: str,
    value: float | None,
    alarming: Callable[[float], bool],
    shown: Callable[[float], str],
    meaning: str,
    threshold: str,
) -> Alarm:
    if value is None:
        return Alarm(title, "unknown", "not measured", meaning, threshold)
    return Alarm(title, "warning" if alarming(value) else "ok", shown(value), meaning, threshold)
