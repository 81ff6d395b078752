"""Per-pair numbers -> pair-weighted means over ranks: overall, per part of a sample, timestep bucket and manifest."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from pgdpo.files.atomic import read_json_lines
from pgdpo.objectives import ObjectiveOutput, PairInfo
from pgdpo.objectives.advice import SATURATED
from pgdpo.objectives.pairing import best_and_worst
from pgdpo.objectives.parts import oriented
from pgdpo.rows.schema import MANIFEST
from pgdpo.training.panels import PARTS
from pgdpo_kernels import GroupErrors, PairErrors

Found = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]  # numbers, and which groups have one

BUCKETS = 4  # equal parts of sigma in [0, 1]


def bucket_name(bucket: int) -> str:
    return f"sigma_{bucket / BUCKETS:.2f}_{(bucket + 1) / BUCKETS:.2f}"


@torch.no_grad()
def pair_metrics(errors: PairErrors, output: ObjectiveOutput | None) -> dict[str, torch.Tensor]:
    """Numbers `[B]` of every pair under the names that all reports use; call it after the backward pass. Without an
    output those of the errors alone.

    Implicit rewards are r = -(policy error - reference error), before beta; `displacement` is 1 where the chosen
    error is above the reference's; `gradient_share/rejected` is the rejected half's share of the two gradient norms
    (of the whole clip's errors: what `local_dpo` adds inside its region is left out);
    `saturation` is that of `saturation_of`; `segment_reward_entropy` is there where the clip has segments.
    """
    whole = errors.over_segments()
    metrics = {} if output is None else {"loss": output.per_group}
    metrics |= {"error/chosen": whole.policy_chosen[:, 0], "error/rejected": whole.policy_rejected[:, 0]}
    if output is not None:
        metrics["saturation"] = saturation_of(output)
    if whole.excess_chosen is not None:
        chosen, rejected = whole.excess_chosen[:, 0], whole.excess_rejected[:, 0]
        margin = rejected - chosen
        metrics |= {
            "implicit_accuracy": (margin > 0).float() + 0.5 * (margin == 0).float(),
            "margin": margin,
            "reward/chosen": -chosen,
            "reward/rejected": -rejected,
            "displacement": (chosen > 0).float(),
            "excess/chosen": chosen,
            "excess/rejected": rejected,
        }
        if errors.excess_chosen.shape[1] > 1:
            metrics["segment_reward_entropy"] = _segment_entropy(errors)
    norms = _gradient_norms(errors, output)
    if norms is not None:
        metrics["gradient_share/rejected"] = _share(norms[1], norms.sum(0))
    pairs, stats = len(whole.policy_chosen), {} if output is None else output.stats
    known = {name: value for name, value in stats.items() if name not in metrics}
    return metrics | {
        name: value.detach().float().expand(pairs) for name, value in known.items() if value.ndim < 2
    }


def saturation_of(output: ObjectiveOutput) -> torch.Tensor:
    """`[B]`: 1 where |logit| > 8; of parts with sigmoids of their own the share of those of which that is so."""
    return (output.logits.abs() > SATURATED).float() if output.flat is None else output.flat


@torch.no_grad()
def group_metrics(errors: PairErrors | GroupErrors, output: ObjectiveOutput | None, info: PairInfo) -> Found:
    """(`pair_metrics`, of which group each has one, bool `[B]`, where not all do); call it after the backward pass.

    Chosen and rejected of a group are its best and its worst sample; its accuracy is that of all its pairs of unequal
    ranks. A single clip is a chosen one unless its label is -1, and has no margin.
    """
    if isinstance(errors, PairErrors):
        return pair_metrics(errors, output), {}
    pairs, places = best_and_worst(errors, info)
    metrics = pair_metrics(pairs, output)
    better = places[:, :, None] < places[:, None, :]  # (B, K, K)
    unequal = better.any((1, 2))
    if "implicit_accuracy" in metrics:
        reward = -errors.over_segments().excess.reshape(errors.groups, -1).T
        ahead = reward[:, :, None] - reward[:, None, :]
        right = (ahead > 0).float() + 0.5 * (ahead == 0).float()
        metrics["implicit_accuracy"] = (right * better).sum((1, 2)) / better.sum((1, 2)).clamp_min(1)
    disliked = torch.zeros_like(unequal) if info.label is None else info.label[:, 0] < 0
    single = torch.full_like(unequal, errors.groups == 1)
    present = {
        "chosen": torch.where(single, ~disliked, True),
        "rejected": torch.where(single, disliked, unequal),
        "both": unequal,
    }
    sides = {name: "both" for name in ("implicit_accuracy", "margin", "segment_reward_entropy")}
    sides |= {"displacement": "chosen"}
    of = {name: sides.get(name, name.rpartition("/")[2]) for name in metrics}
    return metrics, {name: present[side] for name, side in of.items() if side in present}


@torch.no_grad()
def sample_metrics(
    errors: PairErrors | GroupErrors | Mapping[str, PairErrors | GroupErrors],
    joint: PairErrors | GroupErrors,
    output: ObjectiveOutput,
    info: PairInfo,
    parts: Sequence[str],
) -> Found:
    """`group_metrics` of `joint`, the errors of whole samples; where `errors` are of several parts, of each of these
    too, under `parts/<its name>/` and as its own label has it.

    `parts`: all that a sample may have, of which none lacks the first. Names are the same whatever a micro-batch lacks:
    where a part is missing, or a tie, it has no number. `parts/<name>/gradient_share` is its share of the norms of the
    loss's gradient by the parts' predictions, of the groups in which all parts count.
    """
    if not isinstance(errors, Mapping):
        return group_metrics(errors, output, info)
    metrics, present = group_metrics(joint.detach(), output, info)
    labels, missing = info.parts or {}, torch.zeros_like(output.per_group, dtype=torch.bool)
    counts = {
        name: labels[name] != 0 if name in labels else ~missing if name in errors else missing
        for name in parts
    }
    of_parts = {
        name: group_metrics(part.detach(), output.parts.get(name), info)
        for name, part in oriented(errors, info).items()
    }
    norms = _norms_of_parts(errors, labels)
    if norms:
        chosen, rejected = torch.stack([*norms.values()]).square().sum(0).sqrt()
        metrics["gradient_share/rejected"] = _share(rejected, chosen + rejected)
        whole = torch.stack([*norms.values()]).square().sum(1).sqrt()
        every = torch.stack([*counts.values()]).all(0)
        for name, (chosen, rejected) in norms.items():
            of_parts[name][0]["gradient_share/rejected"] = _share(rejected, chosen + rejected)
            own = (chosen.square() + rejected.square()).sqrt()
            of_parts[name][0]["gradient_share"] = _share(own, whole.sum(0))
            of_parts[name][1]["gradient_share"] = every
    for name in parts:
        found, has = of_parts.get(name, of_parts[parts[0]])
        metrics |= {f"{PARTS}/{name}/{key}": found[key] for key in of_parts[parts[0]][0]}
        own = {key: has.get(key, ~missing) & counts[name] for key in found}
        present |= {f"{PARTS}/{name}/{key}": value for key, value in own.items()}
    return metrics, present


def margins_of(
    metrics: Mapping[str, torch.Tensor], present: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Of `sample_metrics`: each part's margins `[B]`, 0 where it does not count; {} of samples of one part."""
    names = [name for name in metrics if name.startswith(f"{PARTS}/") and name.endswith("/margin")]
    return {name.split("/")[1]: metrics[name].where(present[name], 0.0) for name in names}


def as_pairs(errors: PairErrors | GroupErrors, info: PairInfo) -> PairErrors:
    """The same; of groups those of the best against the worst sample."""
    return errors if isinstance(errors, PairErrors) else best_and_worst(errors, info)[0]


def _segment_entropy(errors: PairErrors) -> torch.Tensor:
    """Entropy `[B]`, in 0..1, of how a pair's margin is spread over its segments.

    1: every segment has the same share of the absolute margin, as at the start, where all are 0; 0: one segment has
    it all. After the entropy of segment rewards by which DID judges pairs; the form is ours.
    """
    size = (errors.excess_rejected - errors.excess_chosen).abs() * errors.count  # (B, S)
    total = size.sum(1, keepdim=True)
    share = torch.where(total > 0, size / total, 1 / size.shape[1])
    return -torch.xlogy(share, share).sum(1) / math.log(size.shape[1])


def watch_gradients(errors: PairErrors | GroupErrors | Mapping[str, PairErrors | GroupErrors]) -> None:
    """Keep the gradients by the errors of pairs, of which the shares of the rejected half, and of parts, are made."""
    if isinstance(errors, Mapping):
        for part in errors.values():
            watch_gradients(part)
        return
    if not isinstance(errors, PairErrors):
        return
    for side in ("chosen", "rejected"):
        for name in (f"policy_{side}", f"excess_{side}", f"drift_{side}"):
            field = getattr(errors, name)
            if field is not None and field.requires_grad:
                field.retain_grad()


def _gradient_norms(errors: PairErrors, output: ObjectiveOutput | None) -> torch.Tensor | None:
    """Those of chosen and rejected, `[2, B]`; None without gradients."""
    slopes = (output and output.slopes) or (None, None)
    sides = zip(("chosen", "rejected"), slopes, strict=True)
    norms = [_gradient_norm(errors, side, slope) for side, slope in sides]
    return torch.stack(norms) if all(norm is not None for norm in norms) else None


def _norms_of_parts(
    errors: Mapping[str, PairErrors | GroupErrors], labels: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`_gradient_norms` of each part, its own chosen first; 0 of one that is not in the loss; none of groups."""
    norms = {
        name: _gradient_norms(part, None) for name, part in errors.items() if isinstance(part, PairErrors)
    }
    known = [each for each in norms.values() if each is not None]
    found = {}
    for name in norms if known else ():
        own = torch.zeros_like(known[0]) if norms[name] is None else norms[name]
        found[name] = own.flip(0).where(labels[name] < 0, own) if name in labels else own
    return found


def _share(part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    return part / whole.clamp_min(1e-30)


def _gradient_norm(errors: PairErrors, side: str, slope: torch.Tensor | None) -> torch.Tensor | None:
    """Norm `[B]` of the loss's gradient by the prediction, up to a factor that both sides share; None without one.

    In a segment of N elements that gradient is (2/N)(g rho + h d) with the residual rho, d = policy - reference, g
    the loss's slope by the error and the excess, h its slope by the drift D = mean d^2; 2 mean(rho d) = excess + D.
    `slope`: g, where it is known, and h is 0; else both are the gradients that `watch_gradients` kept.
    """
    count = errors.count.where(
        errors.count > 0, 1.0
    )  # where a mask leaves nothing of a segment, all else is 0
    if slope is not None:
        return (slope.square() * getattr(errors, f"policy_{side}") / count).sum(1).sqrt()
    error, excess, drift = (getattr(errors, f"{name}_{side}") for name in ("policy", "excess", "drift"))
    # Beside cached errors the excess is made of the policy's, whose gradient then holds that by both.
    fields = (error,) if drift is None else (error, excess)
    slopes = [field.grad for field in fields if field is not None and field.grad is not None]
    h = None if drift is None else drift.grad
    if not slopes and h is None:
        return None
    g = sum(slopes) if slopes else torch.zeros_like(error)
    square = g.square() * error
    if h is not None:
        square = square + g * h * (excess + drift) + h.square() * drift
    return (square / count).sum(1).clamp_min(0).sqrt()


class StepMetrics:
    """Sums of one optimizer step's micro-batches, by timestep bucket and by manifest.

    `process_group`: ranks that hold all pairs once; `sources`: names of the manifests, where there are several.
    """

    def __init__(
        self, device: torch.device, process_group: dist.ProcessGroup, *, sources: Sequence[str] = ()
    ) -> None:
        self.device = device
        self.process_group = process_group
        self.sources = {name: BUCKETS + place for place, name in enumerate(sources)}
        self.names: list[str] = []
        # [BUCKETS + sources, names + 1, 2] a micro-batch: sums and how many they are of; the last column counts groups
        self.sums: list[torch.Tensor] = []

    @torch.no_grad()
    def add(
        self,
        metrics: dict[str, torch.Tensor],
        present: dict[str, torch.Tensor],
        sigma: torch.Tensor,
        counts: torch.Tensor,
        rows: list[dict],
    ) -> None:
        """`metrics`: numbers `[B]`; `present`: bool `[B]`, which groups have one, where not all do; `sigma`: noise
        levels `[B]`; `counts`: bool `[B]`, which groups do; `rows`: of the groups."""
        self.names = list(metrics)
        every = torch.ones_like(counts)
        has = torch.stack([present.get(name, every) & counts for name in metrics] + [counts], dim=1)
        values = torch.stack([*metrics.values(), torch.ones_like(sigma)], dim=1).double()  # (B, names + 1)
        values = torch.stack([torch.where(has, values, 0), has.double()], dim=2)
        shape = BUCKETS + len(self.sources), *values.shape[1:]
        sums = torch.zeros(shape, dtype=torch.float64, device=self.device)
        sums.index_add_(0, (sigma * BUCKETS).long().clamp(0, BUCKETS - 1), values)
        if self.sources:
            places = torch.tensor([self.sources[row[MANIFEST]] for row in rows], device=self.device)
            sums.index_add_(0, places, values)
        self.sums.append(sums)

    def reduce(self) -> dict:
        """Means over all pairs of all ranks, `parts` those of each part; `buckets` holds the same per timestep bucket,
        `sources` per manifest."""
        own = torch.stack(self.sums)
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(self.process_group))]
        dist.all_gather(everyone, own, group=self.process_group)
        sums = torch.cat(everyone).sum(0).cpu()  # in the order of the global batch, on any number of ranks
        means = self._mean(sums[:BUCKETS].sum(0))
        buckets = {bucket_name(number): number for number in range(BUCKETS)}
        apart = {"buckets": buckets, **({"sources": self.sources} if self.sources else {})}
        return means | {kind: self._means(sums, places) for kind, places in apart.items()}

    def _means(self, sums: torch.Tensor, places: dict[str, int]) -> dict[str, dict]:
        """Name -> pairs and their means, of those that had any."""
        return {
            name: {
                "pairs": int(sums[place, -1, 0]),
                **self._mean(sums[place]),
            }
            for name, place in places.items()
            if sums[place, -1, 0] > 0
        }

    def _mean(self, sums: torch.Tensor) -> dict:
        """Of `[names + 1, 2]`, those of `parts` in mappings of their own; NaN where no group has the number."""
        found: dict = {}
        for name, value in zip(self.names, (sums[:-1, 0] / sums[:-1, 1]).tolist(), strict=True):
            if name.startswith(f"{PARTS}/"):
                _, part, own = name.split("/", 2)
                found.setdefault(PARTS, {}).setdefault(part, {})[own] = value
            else:
                found[name] = value
        return found


def read_metrics(run_dir: Path) -> list[dict]:
    """Rows of a run's `metrics.jsonl`."""
    return read_json_lines(run_dir / "metrics.jsonl")


def finite_only(values: dict) -> dict:
    """A step's metrics with None where a number is not finite, which JSON has no word for."""
    return {
        name: finite_only(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in values.items()
    }


def peak_memory(device: torch.device) -> int:
    """Peak bytes: of the GPU's allocator, or the process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def note(values: dict, held_out: dict) -> str:
    """What stands behind the progress bar: the step's, and the newest figures of held-out pairs."""
    shown = {"loss": "loss", "acc": "implicit_accuracy", "displaced": "displacement"}
    words = [f"{label} {values[name]:.3f}" for label, name in shown.items() if values.get(name) is not None]
    figures = {label: held_out.get(shown[label], {}).get("value") for label in ("acc", "displaced")}
    found = [f"{label} {value:.2f}" for label, value in figures.items() if value is not None]
    return "  ".join([*words, *(["held out:", *found] if found else [])])
