"""What an objective needs of the rows, and what the splits mean to each other. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from pgdpo.config import Config
from pgdpo.config.read import Inspection
from pgdpo.data.curation.order import read_margins
from pgdpo.data.places import places_of
from pgdpo.data.sources import shares_of
from pgdpo.data.visits.batches import check_batches
from pgdpo.files.tables import Record
from pgdpo.files.writable import check_writable
from pgdpo.messages.errors import InputError
from pgdpo.messages.problems import Problem, shown
from pgdpo.objectives import get_spec
from pgdpo.objectives.info import OF_GROUPS, on_groups
from pgdpo.objectives.spec import Needs
from pgdpo.rows.columns import COLUMNS, are_hard, hard_labels, how_to_get
from pgdpo.rows.groups import RATINGS
from pgdpo.rows.manifest import CheckedRow
from pgdpo.rows.ranked import ends
from pgdpo.rows.schema import SAMPLES, SIDES, TIE, columns, samples_of, scores_of
from pgdpo.toy.reward import SoundingReward, ToyReward

OFTEN = 10  # times as often as another manifest's pair: above, it may be learnt by heart


def column_problems(rows: Sequence[CheckedRow], name: str, needs: Needs) -> Iterator[Problem]:
    """Columns that the objective lacks, that some rows lack, or whose lengths differ between rows."""
    grouped = rows[0].kind == "group"
    if grouped:
        yield from _sample_problems(rows, name, needs)
    values = [{**columns(row.values), **row.values} for row in rows]
    if any(row.get("preference") is not None for row in values):
        values = [{"probability": 1.0, **row} for row in values]
    for column, kind in COLUMNS.items():
        if grouped and column not in OF_GROUPS:
            continue
        present = [row.get(column) is not None for row in values]
        needed = column in needs.pairs
        if not needed and not any(present):
            continue
        reason = f"objective `{name}` needs it" if needed else "other rows have it"
        if not all(present):
            lacking = [row for row, there in zip(rows, present, strict=True) if not there]
            yield lacking[0].problem(
                f"column `{column}` is missing in {len(lacking)} of {len(rows)} rows, this one first; {reason}",
                key=column,
                allowed=f"a {kind}, in every row",
                suggestion=how_to_get(column),
            )
            continue
        if column == "segment_labels" and all(row.get("segments") for row in values):
            continue  # those count that lie in what is taken of the clips
        lengths = [len(row[column]) if isinstance(row[column], list) else None for row in values]
        other = next((place for place, length in enumerate(lengths) if length != lengths[0]), None)
        if other is not None:
            value = values[other][column]
            yield rows[other].problem(
                f"`{column}` is {shown(value)}, of another length than the first row's {shown(values[0][column])}",
                key=column,
                value=value,
                allowed="one length in all rows",
                suggestion="cut all clips into equally many segments",
            )
    if "masked" in needs.pairs and not grouped and any(row.values.get("mask") is None for row in rows):
        lacking = next(row for row in rows if row.values.get("mask") is None)
        yield lacking.problem(
            f"`mask` is missing; objective `{name}` needs it",
            key="mask",
            allowed="a path or a URL, in every row",
            suggestion="name each pair's mask",
        )


def _sample_problems(rows: Sequence[CheckedRow], name: str, needs: Needs) -> Iterator[Problem]:
    """What the objective reads of pairs alone, and what it reads of samples, and some have not."""
    spec = get_spec(name)
    alone, read = on_groups((*needs.pairs, *spec.of_groups))
    if alone or needs.soft:
        column = "probability" if needs.soft else alone[0]
        what = "a region mask" if column == "masked" else f"`{column}`"
        yield rows[0].problem(
            f"objective `{name}` needs {what}, which is of pairs, and the rows are groups (`samples`)",
            key=SAMPLES,
            allowed="an objective that reads groups",
            suggestion="write pairs, or choose another objective",
        )
        return
    single = [row for row in rows if len(row.sides) == 1]
    if single and not spec.groups:
        yield single[0].problem(
            f"objective `{name}` compares samples, and {len(single)} of {len(rows)} groups have one, this one first",
            key=SAMPLES,
            allowed="two samples or more",
            suggestion="leave it out, or take `kto` or `sft`",
        )
    for keys in read or [RATINGS]:
        lacking = [
            row
            for row in rows
            if not any(key in samples_of(row.values)[0] for key in keys) and (read or len(row.sides) > 1)
        ]
        if lacking:
            named = " or ".join(f"`{key}`" for key in keys)
            what = f"objective `{name}` {'needs' if read else 'orders the samples by'}"
            yield lacking[0].problem(
                f"{what} {named}, which is missing in {len(lacking)} of {len(rows)} groups, this one first",
                key=f"{SAMPLES}.{keys[0]}",
                allowed=f"{named} in every sample",
                suggestion=f"write `{keys[0]}` into every sample, or choose another objective",
            )


def preference_problems(rows: Sequence[CheckedRow], ties: str, name: str, needs: Needs) -> Iterator[Problem]:
    """Ties and hard labels that an objective would misread."""
    tied = [row for row in rows if row.values.get("preference") == TIE]
    if tied and ties == "keep" and not {"probability", "label_smoothing"} & set(needs.pairs):
        yield tied[0].problem(
            f"{len(tied)} of {len(rows)} rows are ties, and objective `{name}` trains them as clear preferences",
            key="data.ties",
            value="keep",
            allowed="`drop`, or an objective that reads `probability`",
            suggestion="set data.ties to `drop`",
            severity="warning",
        )
    labels = [{**columns(row.values), **row.values}.get("probability") for row in rows]
    if needs.soft and None not in labels and are_hard(labels):
        yield rows[0].problem(
            hard_labels(name, len(rows)),
            key="probability",
            value=labels[0],
            allowed="a number between 0 and 1 in some rows",
            suggestion="write how sure each label is",
        )


def place_problems(inspected: Inspection) -> Iterator[Problem]:
    """Folders that take no results: files, and what cannot be made."""
    for key, folder in places_of(inspected.loaded):
        try:
            check_writable(folder, key)
        except InputError as error:
            yield inspected.problem(key, str(error), value=str(folder))
            return


def toy_rows(config: Config) -> list[CheckedRow]:
    """Stand-ins for the toy's rows, which `prepare` writes: their keys, with what a rule may read of them."""
    toy = config.data.toy
    scores = {score.name: 0.0 for score in fields(SoundingReward if toy.sound else ToyReward)}
    values = {"id": "train-00000", "prompt": "", "defect": "text"}
    if toy.samples == 2:
        values |= {"strength": 0.0, "scores": dict.fromkeys(SIDES, scores)}
        values |= {"dimensions": {"video": 1.0, "audio": 1.0}} if toy.sound else {}
    else:
        sample = {"clip": "", "score": 0.0, "rank": 0, "scores": scores}
        values |= {"strength": [0.0] * toy.samples, "samples": [sample] * toy.samples}
    record = Record(str(config.output_dir / "toy" / "train.jsonl"), values, line=1)
    return [CheckedRow(record, {})] * toy.train_pairs


def curation_problems(rows: Sequence[CheckedRow], inspected: Inspection) -> Iterator[Problem]:
    """Scores, qualities and sources that data.select, .weight and .order read, and rows lack."""
    data = inspected.loaded.data
    rules = [(f"data.select.{place}", rule) for place, rule in enumerate(data.select)]
    rules += [(f"data.{key}", rule) for key in ("weight", "order") if (rule := getattr(data, key))]
    for where, rule in rules:
        if getattr(rule, "file", None) is not None:
            yield from _file_problems(inspected, f"{where}.file", rule.file)
        sides = SIDES[:1] if rule.by == "chosen_score" else SIDES
        lacking = [
            row for row in rows if rule.score is not None and not _has_score(row, rule.score, len(sides))
        ]
        if lacking:
            yield lacking[0].problem(
                f"score `{rule.score}` is missing in {len(lacking)} of {len(rows)} rows, this one first; "
                f"{where} reads it",
                key="scores",
                value=lacking[0].values.get("scores"),
                allowed=" and ".join(f"scores.{side}.{rule.score}" for side in sides) + ", in every row"
                if lacking[0].kind == "pair"
                else f"scores.{rule.score}, in every sample",
                suggestion="name a score that all rows have, or add it",
            )
        quality = getattr(rule, "quality", None)
        lacking = [row for row in rows if quality and not isinstance(row.values.get(quality), (int, float))]
        if lacking:
            value = lacking[0].values.get(quality)
            alike = [row for row in lacking if (row.values.get(quality) is None) == (value is None)]
            what = "is missing" if value is None else f"is {shown(value)}, no number,"
            yield lacking[0].problem(
                f"`{quality}` {what} in {len(alike)} of {len(rows)} rows, this one first; {where} reads it",
                key=quality,
                value=value,
                allowed="a number, in every row",
                suggestion="name a column that all rows have, or add it",
            )
        wanted, known = getattr(rule, "sources", []), {row.values.get("source") for row in rows} - {None}
        unknown = [name for name in wanted if name not in known]
        # `source` keeps what it names; `on_policy` asks which clips are the model's own, and may name others too.
        if rows and unknown and (rule.by == "source" or len(unknown) == len(wanted)):
            yield inspected.problem(
                f"{where}.sources",
                f"`{where}` names {', '.join(unknown)}: no row has {'such a source' if known else 'a `source`'}",
                value=wanted,
                allowed=", ".join(sorted(known)) or "what rows have as `source`",
                suggestion="name sources that rows have" if known else "write `source` into the rows",
            )


def _file_problems(inspected: Inspection, key: str, file: Path) -> Iterator[Problem]:
    try:
        read_margins(file)
    except InputError as error:
        yield inspected.problem(key, str(error), value=str(file))


def _has_score(row: CheckedRow, name: str, clips: int) -> bool:
    """Whether the best clip (1), or best and worst (2), have a score of that name."""
    if name == "reward_margin" and clips == 2 and row.values.get("reward_margin") is not None:
        return True
    sides = ends(row.values)[:clips]
    return all(isinstance(scores_of(row.values, side).get(name), (int, float)) for side in sides)


def split_problems(train: Sequence[CheckedRow], held_out: Sequence[CheckedRow]) -> Iterator[Problem]:
    """Held-out pairs that are trained on."""
    for what, names in (
        ("id", lambda row: [row.values["id"]]),
        ("clip", lambda row: [row.clips[side] for side in row.sides]),
    ):
        seen = {name for row in train for name in names(row)}
        shared = [row for row in held_out if seen.intersection(names(row))]
        if shared:
            name, kind = next(name for name in names(shared[0]) if name in seen), shared[0].kind
            yield shared[0].problem(
                f"{what} {shown(name)} of a held-out {kind} stands in data.train too ({len(shared)} of "
                f"{len(held_out)})",
                key="data.held_out",
                value=name,
                allowed=f"{kind}s that are never trained on",
                suggestion="take them out of one of the two manifests; in one manifest, give them one prompt",
                severity="warning",
            )


def share_problems(rows: Sequence[CheckedRow], inspected: Inspection) -> Iterator[Problem]:
    """Manifests whose pairs come far more often than another's."""
    shares, train = shares_of(inspected.loaded.data), inspected.loaded.train
    if shares is None or not rows:
        return
    counts = Counter(row.manifest_name for row in rows)
    visits = {name: float(share) * train.steps * train.global_batch_groups for name, share in shares.items()}
    each = {
        name: visits[name] / counts[name] for name in shares if counts[name]
    }  # of one pair, in the whole run
    rarest, oftenest = min(each, key=each.get), max(each, key=each.get)
    times = each[oftenest] / each[rarest]
    if times > OFTEN and each[oftenest] > 1:
        yield inspected.problem(
            "data.train",
            f"each of the {counts[oftenest]} pairs of `{oftenest}` is visited {each[oftenest]:.3g} times in "
            f"train.steps, {times:.3g} times as often as those of `{rarest}`",
            value=float(shares[oftenest]),
            allowed=f"up to {OFTEN} times without this warning",
            suggestion=f"give `{oftenest}` a smaller share or more pairs, unless that is meant",
            severity="warning",
        )


def amount_problems(
    rows: Sequence[CheckedRow], held_out: Sequence[CheckedRow], inspected: Inspection
) -> Iterator[Problem]:
    """Batches, and prompts that are sampled, against the number of pairs."""
    key, train = "train.global_batch_groups", inspected.loaded.train
    batch = train.global_batch_groups
    try:
        check_batches(train, ranks=1)
    except InputError as error:
        what, _, allowed = str(error).rpartition(": take ")
        yield inspected.problem(
            key, what, value=batch, allowed=allowed, suggestion="take one that all ranks divide"
        )
    if rows and len(rows) < batch:
        yield inspected.problem(
            key,
            f"`{key}` is {batch}, and data.train has {len(rows)} {rows[0].kind}s: some stand in one step more than "
            "once",
            value=batch,
            allowed=f"at most {len(rows)}",
            suggestion="take a smaller batch or more pairs",
            severity="warning",
        )
    key, wanted = "evaluate.num_prompts", inspected.loaded.evaluate.num_prompts
    stated = "num_prompts" in (inspected.raw.get("evaluate") or {})
    if held_out and stated and len(held_out) < wanted:
        yield inspected.problem(
            key,
            f"`{key}` is {wanted}, and data.held_out has {len(held_out)} {held_out[0].kind}s: no more are sampled",
            value=wanted,
            allowed=f"at most {len(held_out)}",
            suggestion="take fewer prompts (and evaluate.samples_per_prompt of each) or more held-out pairs",
            severity="warning",
        )
