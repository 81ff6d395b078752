"""One self-contained HTML page a run: what was trained, whether it helped, the clips, the curves, the settings.

The page asks nothing of the network (its own content policy forbids it), so it can be mailed or archived as it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import yaml

from pgdpo.checkpoints.best import HELD_OUT
from pgdpo.checkpoints.runs import evaluation_of
from pgdpo.config import PARTS, Config, SampleSettings
from pgdpo.messages.errors import InputError
from pgdpo.messages.formats import duration, is_number, number, objective_name, power_of_ten, scale_of
from pgdpo.objectives.parts import Parts
from pgdpo.report.alarms import alarms, bucket_label
from pgdpo.report.budget import MEGABYTES, Fitted, fit
from pgdpo.report.compare import Compared, beside
from pgdpo.report.curves.series import Drawn, curves
from pgdpo.report.ending import ending
from pgdpo.report.page import write_page
from pgdpo.report.pairs import NOT_SHOWN, drawn_sides, shown_pairs
from pgdpo.report.sources import by_part, by_source
from pgdpo.report.steps import evaluated_steps, step_curves
from pgdpo.training.panels import panels_of, parts_of

TEMPLATE = "report/templates/report.html.jinja"
MODELS = ("reference", "aligned")
ERRORS = ("margin", "excess/chosen", "excess/rejected")


def write_report(
    run_dir: Path, resolved: Config | None = None, *, out: Path | None = None, step: int | None = None
) -> Path:
    """Write `report.html` into `out` (by default `run_dir`) from what the run has, `config.yaml`, `metrics.jsonl` and
    `events.jsonl`, and from what stands in `out`: `pairs.json`, `results.json`, `evaluations/` and their clips.

    `step`: what there was up to it, with its own results. Returns the report's path. Clips are embedded; a sample of
    which none was kept is not shown. `resolved`: the run's record, in place of its `config.yaml`.

    Raises:
        InputError: `config.yaml` is missing, or a file is unreadable.
    """
    run_dir = Path(run_dir)
    out = run_dir if out is None else out
    if resolved is not None:
        config = resolved.model_dump(mode="json")
        config_text = yaml.safe_dump(config, sort_keys=False)
    else:
        config_text = _read(run_dir / "config.yaml", str)
        config = _read(run_dir / "config.yaml", yaml.safe_load)
    logs = _Logs.of(run_dir, step)
    experts = {part: _Logs.of(run_dir / part, step) for part in PARTS if (run_dir / part).is_dir()}
    metrics, events = logs.metrics, logs.events
    for name, part in experts.items():
        metrics = metrics + part.metrics
        events = events + [{**row, "message": f"{name}: {row['message']}"} for row in part.events]
    # A report beside a run that cannot be written shows the results that stand in it.
    judged = next((folder for folder in (out, run_dir) if _results(folder, step).is_file()), out)
    results = _read(_results(judged, step), json.loads, default=None)
    results = results or _not_evaluated(run_dir, config, metrics)
    preview = NOT_SHOWN | _read(out / "pairs.json", json.loads, default={})
    steps, other_steps = evaluated_steps(judged, results)
    # Far more samples are scored than kept as clips.
    shown = [s for s in results["samples"] if any(s[side]["clip"] for side in MODELS)]
    buckets = [{"label": bucket_label(name), **row} for name, row in (results.get("buckets") or {}).items()]
    looks = next((part.looks for part in experts.values()), logs.looks)
    marks = [] if experts else logs.marks
    kind = preview["kind"]
    beta = results.get("beta") or _beta(config)
    weights = Parts.read(config["objective"].get("parts"))
    about = {"kind": kind, "parts": weights}
    found = alarms(metrics, results, beta, looks=looks, events=events, **about) if not experts else []
    for name, part in experts.items():
        judged_as = results | (results.get("experts") or {}).get(name, {"displacement": None})
        beside = judged_as.get("beta") or beta
        each = alarms(part.metrics, judged_as, beside, looks=part.looks, events=part.events, **about)
        found += [replace(alarm, title=f"{alarm.title}, {name}") for alarm in each]
    kept = [out / pair[side] for pair in preview["pairs"] for side in drawn_sides(pair)]
    kept += [judged / s[side]["clip"] for s in shown for side in MODELS if s[side]["clip"]]
    megabytes = config.get("evaluate", {}).get("report_megabytes", MEGABYTES)
    fitted = fit(kept, out / "small", megabytes)
    samples = [_sample(judged, s, fitted, out) for s in shown]
    report = out / "report.html"
    write_page(
        report,
        TEMPLATE,
        title=objective_name(results["objective"]),
        results=results,
        verdict=verdict(results, kind),
        about=_about(results["objective"]),
        created=_created(results.get("created")),
        alarms=sorted(found, key=lambda alarm: ("warning", "open", "ok", "unknown").index(alarm.state)),
        warnings=sum(alarm.state == "warning" for alarm in found),
        samples=samples,
        tally={kind: sum(s["outcome"] == kind for s in samples) for kind in ("better", "equal", "worse")},
        steps=steps if len(steps) > 1 else [],
        other_steps=other_steps,
        step_curves=step_curves(steps),
        pairs=shown_pairs(out, preview["pairs"], fitted),
        pairs_of=preview["of"],
        kind=kind,
        sized=preview["sized"],
        clips_note=fitted.words,
        events=events,
        ending=ending(logs.events),
        curves=_beside(experts) if experts else _curves(metrics, looks, marks),
        experts=results.get("experts") or {},
        held_out=looks,
        marks=marks,
        reward_parts=_parts(results.get("reward") or {}),
        scales=_scales(results, samples),
        buckets=buckets,
        sources=None if experts else by_source(metrics, results),
        parts=by_part(metrics, results, looks),
        power=power_of_ten(row.get(name) for row in buckets for name in ERRORS),
        objectives=results.get("objectives") or [],
        settings=_settings(config, results, preview["sized"]),
        costs=_costs(metrics, results, kind),
        config_text=config_text,
    )
    return report


@dataclass(frozen=True)
class _Logs:
    """What a run, or one expert's part of it, has written down on its way."""

    folder: Path
    metrics: list[dict]
    events: list[dict]
    looks: list[dict]

    @classmethod
    def of(cls, folder: Path, step: int | None) -> _Logs:
        names = ("metrics.jsonl", "events.jsonl", HELD_OUT)
        return cls(folder, *(_up_to(_read(folder / name, _json_lines, default=[]), step) for name in names))

    @property
    def marks(self) -> list[tuple[int, str]]:
        return [(row["step"], row["message"]) for row in self.events if row["event"] == "steer"]


def _curves(metrics: list[dict], looks: list[dict], marks: list[tuple[int, str]]) -> list[Drawn]:
    return curves(metrics, panels_of(parts_of(metrics)), held_out=looks, marks=marks)


def _beside(experts: dict[str, _Logs]) -> list[Drawn]:
    """The curves of both experts, on the same axes."""
    return beside(
        [
            Compared(name, f"run{place}", part.folder, None, part.metrics, part.looks, {})
            for place, (name, part) in enumerate(experts.items(), start=1)
        ]
    )


def _results(folder: Path, step: int | None) -> Path:
    return (folder if step is None else evaluation_of(folder, step)) / "results.json"


def _up_to(rows: list[dict], step: int | None) -> list[dict]:
    return rows if step is None else [row for row in rows if row["step"] <= step]


def verdict(results: dict, kind: str = "pair") -> dict:
    """`headline`, `lede` and `tone` (better, worse, open) in plain words; only an interval clear of 50% decides."""
    name, steps = objective_name(results["objective"]), results["steps"]
    win = results.get("win_rate")
    moved = results.get("displacement") or {}
    clause = ""
    if is_number(moved.get("value")):
        clause = (
            f" On held-out {kind}s, {moved['value']:.0%} of the preferred clips became less likely than under the "
            "reference."
        )
    if not win and results["checkpoint"] is None:
        return {
            "tone": "open",
            "headline": f"{name}, {steps:,} steps so far" if steps else f"{name}, not trained yet",
            "lede": "Not evaluated yet: `pgdpo evaluate` samples both models and adds their clips here.",
        }
    if not win:
        return {
            "tone": "open",
            "headline": f"{name}, {steps:,} steps",
            "lede": "No reward function was configured, so the clips below are for your own eyes." + clause,
        }
    rate = f"{win['value']:.0%}"
    interval = f"95% interval {win['low']:.0%} to {win['high']:.0%}"
    if win["low"] > 0.5:
        tone, headline = "better", f"The aligned model wins {rate} of the time"
    elif win["high"] < 0.5:
        tone, headline = "worse", f"The aligned model wins only {rate} of the time"
    else:
        tone, headline = "open", f"No clear difference: the aligned model wins {rate} of the time"
    lede = (
        f"{name} trained for {steps:,} steps. Reference and aligned model drew {win['samples']:,} clips each, from "
        f"the same noise and held-out prompts ({interval}, ties count half).{clause}"
    )
    return {"tone": tone, "headline": headline, "lede": lede}


_NEEDED = object()


def _read(path: Path, parse, default=_NEEDED):
    if not path.is_file():
        if default is not _NEEDED:
            return default
        raise InputError(
            f"{path}: not there: run `pgdpo report` with the run's configuration, it writes this file"
        )
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: unreadable ({error}): run `pgdpo evaluate` again, or restore the file"
        ) from error


def _json_lines(text: str) -> list[dict]:
    # What follows the last newline is a row that a kill cut off.
    return [json.loads(line) for line in text.split("\n")[:-1]]


def _not_evaluated(run_dir: Path, config: dict, metrics: list[dict]) -> dict:
    """`results.json` of a run that has none yet."""
    empty = dict.fromkeys(
        ("win_rate", "displacement", "reward", "buckets", "created", "versions", "machine", "seconds")
    )
    return empty | {
        "objective": config["objective"]["name"],
        "run": run_dir.name,
        "beta": _beta(config),
        "checkpoint": None,
        "steps": metrics[-1]["step"] if metrics else 0,
        "samples": [],
        "objectives": [],
    }


def _beta(config: dict) -> float | None:
    """None where the objective has none, or a run has not settled its `auto` yet."""
    beta = config["objective"].get("beta")
    return beta if is_number(beta) else None


def _sample(judged: Path, sample: dict, fitted: Fitted, out: Path) -> dict:
    """One prompt and seed: both sides with their clip embedded, and which of them is better."""
    sides = {side: _side(judged, sample[side], fitted, out) for side in MODELS}
    before, after = (sides[side]["total"] for side in MODELS)
    change = after - before if is_number(before) and is_number(after) else None
    outcome = None
    if change is not None:
        outcome = "equal" if change == 0 else "better" if change > 0 else "worse"
    rewards = {side: sides[side]["reward"] for side in sides}
    return {
        "prompt": sample["prompt"],
        "seed": sample["seed"],
        "change": change,
        "outcome": outcome,
        "parts": _parts(rewards),
        **sides,
    }


def _parts(reward: dict) -> list[str]:
    """Components that both sides have a number for, the total left out."""
    before, after = reward.get("reference") or {}, reward.get("aligned") or {}
    return [
        part for part in before if part != "total" and is_number(before[part]) and is_number(after.get(part))
    ]


def _scales(results: dict, samples: list[dict]) -> dict[str, tuple[float, float]]:
    """The line that each component is drawn on."""
    scored = [(results.get("reward") or {}).get(side) or {} for side in ("reference", "aligned")]
    scored += [sample[side]["reward"] for sample in samples for side in ("reference", "aligned")]
    scales = {}
    for part in {part for reward in scored for part in reward}:
        scales[part] = scale_of([reward[part] for reward in scored if is_number(reward.get(part))])
    return scales


def _side(folder: Path, side: dict, fitted: Fitted, out: Path) -> dict:
    """One model's clip of a sample, as `Fitted.shown` has it, with its reward."""
    reward = side.get("reward") or {}
    clip = folder / side["clip"] if side["clip"] else None
    return {"reward": reward, "total": reward.get("total"), **fitted.shown(clip, out)}


def _about(objective: str) -> dict | None:
    """The registry's own words on an objective; None for one that it no longer holds."""
    from pgdpo.objectives import get_spec

    try:
        spec = get_spec(objective)
    except InputError:
        return None
    paper = spec.paper if spec.paper.strip("–") else None
    return {"summary": spec.summary, "formula": spec.formula, "paper": paper, "note": spec.note}


def _created(text: str | None) -> str:
    if not text:
        return ""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return f"{moment.day} {moment:%B %Y, %H:%M}"


def _settings(config: dict, results: dict, sized: str) -> list[tuple[str, str]]:
    """What a reader asks for first; the rest stands in the whole configuration below it."""
    data, model, train = config["data"], config["model"], config["train"]
    adapter = model.get("adapter")
    options = {key: value for key, value in config["objective"].items() if key != "name"}
    sampling = (results.get("settings") or {}).get("sampling") or {}
    return [
        ("Model", f"{model['family']}, {model['path']}"),
        ("Clips", _sizes(data)),
        (
            "Trained",
            f"LoRA, rank {adapter['rank']}, alpha {adapter['alpha']:g}" if adapter else "all weights",
        ),
        ("Objective", ", ".join(f"{key} {value}" for key, value in options.items()) or "no options"),
        ("Steps", f"{train['steps']:,} of {train['global_batch_groups']:,} {sized}"),
        (
            "Learning rate",
            f"{train['learning_rate']:g}, {train['schedule']}, {train['warmup_steps']} warm-up steps",
        ),
        ("Precision", f"{train['precision']}, ZeRO stage {train['zero_stage']}"),
        ("Seed", str(train["seed"])),
        *((f"Sampled, {size}", str(SampleSettings(**how))) for size, how in sampling.items()),
    ]


def _sizes(data: dict) -> str:
    """Of all buckets, where there are several."""
    sizes = data.get("buckets") or [(data["num_frames"], data["height"], data["width"])]
    return "; ".join(f"{frames} frames of {width}×{height}" for frames, height, width in sizes)


def _costs(metrics: list[dict], results: dict, kind: str) -> list[tuple[str, str]]:
    """Medians over the steps: the first ones also pay for the warm-up of caches and kernels."""

    def values(name: str) -> list[float]:
        return sorted(row[name] for row in metrics if is_number(row.get(name)))

    def median(name: str) -> float | None:
        found = values(name)
        return found[len(found) // 2] if found else None

    peak = max(values("peak_memory"), default=None)
    rows = [
        ("Training", duration(sum(values("seconds"))) if metrics else "–"),
        (f"{kind.capitalize()}s a second", number(median("pairs_per_second"))),
        ("Tokens a second", number(median("tokens_per_second"))),
        ("Peak memory", f"{peak / 2**30:.2f} GiB" if peak else "–"),
        ("Evaluation", duration(results.get("seconds"))),
    ]
    return [row for row in rows if row[1] != "–"]
