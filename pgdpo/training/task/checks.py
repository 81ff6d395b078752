"""Refusals of data and settings that lack what an objective needs; none of them loads a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pgdpo.config import Config
from pgdpo.data.prepared import PreparedPairs, has_mask
from pgdpo.diffusion.streams import VIDEO, Latents, by_stream
from pgdpo.engine.parallel import check_sequence_parallel
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.family import Family
from pgdpo.objectives import Needs, Objective, get_spec
from pgdpo.objectives.info import OF_GROUPS, on_groups
from pgdpo.objectives.objective import pools
from pgdpo.objectives.parts import Parts
from pgdpo.rows.columns import COLUMNS, are_hard, hard_labels, how_to_get
from pgdpo.rows.schema import SAMPLES


def check_data(objective: Objective, config: Config, data: PreparedPairs) -> None:
    """Refuse data and settings that lack what the objective needs; needs no weights.

    Raises InputError naming objective, column, the first row at fault and the file.
    """
    check_noise(objective.name, objective.needs, config)
    check_reference(objective.name, objective.needs, config)
    check_rows(objective.name, objective.needs, data)
    if data.kind == "group":
        for size in sorted(set(data.group_sizes)):
            objective.check_groups(size)


def check_rows(name: str, needs: Needs, data: PreparedPairs) -> None:
    """Raises InputError where prepared rows lack a column that the objective reads, or hold it in another form."""
    if data.rows[0].get(SAMPLES) is not None:
        _check_groups(name, needs, data)
    elif "masked" in needs.pairs:
        _check_masks(name, data)
    for column in COLUMNS if data.rows[0].get(SAMPLES) is None else OF_GROUPS:
        _check_column(column, data, name if column in needs.pairs else None)
    if needs.soft and are_hard(row["probability"] for row in data.rows):
        raise InputError(f"{data.folder / 'index.json'}: {hard_labels(name, len(data.rows))}")


def _check_groups(name: str, needs: Needs, data: PreparedPairs) -> None:
    """Raises InputError where groups lack what the objective reads, or an order of their samples."""
    file, spec = data.folder / "index.json", get_spec(name)
    pairs_alone, needed = on_groups((*needs.pairs, *spec.of_groups))
    if pairs_alone or needs.soft:
        column = "probability" if needs.soft else pairs_alone[0]
        what = "a region mask" if column == "masked" else f"`{column}`"
        raise InputError(
            f"objective `{name}` needs {what}, which is of pairs, and {file} holds groups (`samples`): write pairs, or "
            "choose another objective"
        )
    for row in data.rows:
        samples = row[SAMPLES]
        if len(samples) == 1 and not spec.groups:
            raise InputError(
                f"objective `{name}` compares samples: group `{row['id']}` of {file} has one; leave it out, or take "
                "`kto` or `sft`"
            )
        has = [key for key in ("rank", "score", "label", "advantage") if samples[0].get(key) is not None]
        for keys in needed:
            if not set(keys) & set(has):
                raise InputError(
                    f"objective `{name}` needs a {' or '.join(f'`{key}`' for key in keys)} of every sample: group "
                    f"`{row['id']}` of {file} has none; write it into the manifest, then run `pgdpo prepare` again"
                )
        if len(samples) > 1 and not has:
            raise InputError(
                f"objective `{name}` orders the samples of a group: those of `{row['id']}` of {file} have no `rank`, "
                "`score`, `advantage` or `label`; write one of them into the manifest, then run `pgdpo prepare` again"
            )


def check_reference(name: str, needs: Needs, config: Config) -> None:
    """Raises InputError where the objective's reference follows the policy and the configuration's does not."""
    if needs.moving and config.reference_mode != "ema":
        raise InputError(
            f"objective `{name}` needs a reference that follows the policy as an EMA, and train.reference is "
            f"`{config.train.reference}`: set train.reference to `ema`"
        )


def check_noise(name: str, needs: Needs, config: Config) -> None:
    """Raises InputError where the configuration doesn't give the noisy latents that the objective needs."""
    if needs.noisy == "siblings":
        raise InputError(
            f"objective `{name}` needs {needs.data}: prepared pairs hold none. Call it from an online loop of your own "
            "(pgdpo.objectives.build_objective)"
        )
    if needs.noisy == "inverted" and config.diffusion.inversion_steps is None:
        raise InputError(
            f"objective `{name}` needs {needs.data}: set diffusion.inversion_steps (10, say), the forwards that a "
            "training step spends on it"
        )
    if config.diffusion.inversion_steps is not None:
        _check_inversion(config)
    if config.timestep_weight == "flow_dpo":
        _check_flow_dpo(config)


def _check_flow_dpo(config: Config) -> None:
    prediction = open_family(config.model).prediction
    if prediction != "flow":
        raise InputError(
            f"objective.timestep_weight is `flow_dpo`: (1 - sigma)^2 is for flow matching, {config.model.family} "
            f"predicts {prediction}; allowed: snr, min_snr or a table"
        )


def _check_inversion(config: Config) -> None:
    family = open_family(config.model)
    prediction = family.prediction
    if prediction != "flow":
        raise InputError(
            f"diffusion.inversion_steps is {config.diffusion.inversion_steps}: inversion is written for flow matching, "
            f"{config.model.family} predicts {prediction}"
        )
    if family.sigma_range[0] > 0:
        raise InputError(
            f"diffusion.inversion_steps is {config.diffusion.inversion_steps}: inversion starts from the clip, and "
            f"model.expert `{config.expert}` answers from sigma {family.sigma_range[0]:g} up alone; leave it out"
        )


def _check_masks(name: str, data: PreparedPairs) -> None:
    lacking = [row for row in data.rows if not has_mask(row)]
    if lacking:
        raise InputError(
            f"objective `{name}` needs region masks in every row: {len(lacking)} of {len(data.rows)} rows of "
            f"{data.folder / 'index.json'} have none, the first is pair `{lacking[0]['id']}`; name each pair's `mask` "
            "in the manifest, then run `pgdpo prepare` again"
        )


def _check_column(column: str, data: PreparedPairs, needed_by: str | None) -> None:
    """All rows hold the column, or none does unless it is needed; all values are of its kind and of one shape."""
    file, rows, kind = data.folder / "index.json", data.rows, COLUMNS[column]
    present = [row.get(column) is not None for row in rows]
    if not any(present) and needed_by is None:
        return
    where = f"objective `{needed_by}` needs the column `{column}`" if needed_by else f"column `{column}`"
    mend = "in the manifest, then run `pgdpo prepare` again"
    if not all(present):
        lacking = present.index(False)
        others = f"{sum(present)} of {len(rows)} rows have it"
        raise InputError(
            f"{where} ({kind}) in every row: row {lacking + 1}, pair `{rows[lacking]['id']}`, of {file} has none "
            f"({others}); {how_to_get(column)}, then run `pgdpo prepare` again"
        )
    for number, row in enumerate(rows, start=1):
        if not kind.accepts(row[column]):
            raise InputError(
                f"{where}: row {number}, pair `{row['id']}`, of {file} holds {row[column]!r}; expected a {kind}; "
                f"mend it {mend}"
            )
        if _length(row[column]) != _length(rows[0][column]):
            raise InputError(
                f"{where}: row {number}, pair `{row['id']}`, of {file} holds {row[column]!r}, row 1 holds "
                f"{rows[0][column]!r}; expected one shape in all rows; mend it {mend}"
            )


def check_shapes(config: Config, family: Family, pairs: PreparedPairs) -> None:
    """Raises InputError for clips that the model does not take, or that ranks cannot share; needs no weights."""
    for size in config.data.sizes:
        family.check_clip(*size)
    for shape in pairs.latent_shapes:
        check_sequence_parallel(config, family, shape)
    check_streams(config, pairs)


def check_streams(config: Config, pairs: PreparedPairs) -> None:
    """Raises InputError where groups without sound leave a run nothing to learn from, or where ranks that have some
    would wait for ranks that have others, for sums that these alone make. (For layers that these alone run: see
    `opening.open_pairs`.)"""
    silent = [row["id"] for row in pairs.rows if not pairs.has_sound(row)]
    first, *others = pairs.streams
    if not (others and silent):
        return
    parts, name = Parts.read(config.objective.get("parts")), config.objective["name"]
    some = (
        f"{len(silent)} of {len(pairs.rows)} rows of {pairs.folder / 'index.json'} have no sound, the first is "
        f"`{silent[0]}`"
    )
    if not parts.weight(first):
        raise InputError(
            f"objective.parts.{first} is 0, and {some}: nothing is learnt of such rows; leave them out, or give "
            f"{first} a weight"
        )
    if len(silent) == len(pairs.rows):
        return
    if parts.form == "separate" and pools(name, **config.objective_options):
        raise InputError(
            f"objective.parts.form is `separate`, and objective `{name}` compares the samples of all ranks, of each "
            f"part by itself, and {some}: ranks that have sound would wait for ranks that have none; leave these rows "
            "out, or set the form to `inside`"
        )


Segments = dict[str, dict[int, list[int] | None]]


def frame_segments(objective: Objective, config: Config, data: PreparedPairs) -> Segments:
    """Of each stream the temporal segment of each latent frame, `[F]`, by the number of frames F; None where the clip
    stays whole.

    As many segments as the columns that the objective needs have, or `data.segments`. Where the frames don't
    divide, the lengths differ by one frame. Raises InputError for numbers that don't fit.
    """
    family = open_family(config.model)
    frames: dict[str, list[int]] = {VIDEO: [shape[1] for shape in data.latent_shapes]}
    for name in family.streams[1:]:
        frames[name] = [family.stream_shapes(*size)[name][1] for size in config.data.sizes]
    return {
        name: divide_frames(
            objective.needs, config.data.segments, data.rows[0], lengths, family.lead if name == VIDEO else 0
        )
        for name, lengths in frames.items()
    }


def segments_of(segments: Segments, latents: Latents) -> list[int] | dict[str, list[int]] | None:
    """Those of `latents` `[N, C, F, ...]`, as `Compared` takes them."""
    found = {name: segments[name][tensor.shape[2]] for name, tensor in by_stream(latents).items()}
    return found if isinstance(latents, Mapping) else found[VIDEO]


def divide_frames(
    needs: Needs, segments: int | None, row: Mapping[str, Any], frames: Sequence[int], lead: int = 0
) -> dict[int, list[int] | None]:
    """`frame_segments` of clips of these numbers of latent `frames`, whose rows have the columns of `row`.

    `lead`: how many of the frames stand before the clip's own (`Family.lead`).
    """
    count, source = segments, "data.segments"
    for column in ("segment_labels", "tail"):
        if column not in needs.pairs:
            continue
        length = _length(row[column])
        if count not in (None, length):
            raise InputError(
                f"{source} is {count}, `{column}` has {length} entries a row: both must be one number"
            )
        count, source = length, f"`{column}`"
    lengths = sorted(set(frames))
    if count is None:
        return dict.fromkeys(lengths)
    most = lengths[0] - lead
    if count > most:
        raise InputError(
            f"{source} asks for {count} segments, and the latents have {most} frames: at most that many"
        )
    return {
        frames: [max(frame, 0) * count // (frames - lead) for frame in range(-lead, frames - lead)]
        for frames in lengths
    }


def _length(value: float | list) -> int | None:
    return len(value) if isinstance(value, list) else None
