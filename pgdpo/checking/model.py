"""What needs the model's files, but none of its weights: sizes, segments, token lengths, prepared data."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pgdpo.checking.clips import Clip
from pgdpo.checking.prompts import negative_prompt_problems, row_prompt_problems
from pgdpo.config import Config, DataConfig, sample_settings
from pgdpo.config.read import Inspection
from pgdpo.data.buckets import size_name
from pgdpo.data.clips import PairPlan, Sampling, bucket_of, planned, read_pictures
from pgdpo.data.curation.apply import curated
from pgdpo.data.masks import read_mask
from pgdpo.data.sources import shares_of
from pgdpo.data.visits.mixture import check_left
from pgdpo.engine.attention import check_attention
from pgdpo.engine.engine import check_deepspeed, check_offload
from pgdpo.engine.memory import check_selective
from pgdpo.engine.parallel import check_sequence_parallel
from pgdpo.engine.policy import check_kernels, open_adapter
from pgdpo.engine.zero.load import check_files
from pgdpo.evaluation.rewards import try_reward
from pgdpo.files.locations import fetch, is_url
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError, MachineError
from pgdpo.messages.problems import Problem
from pgdpo.models import open_family
from pgdpo.models.family import Family
from pgdpo.models.protocols import Encoders
from pgdpo.objectives import build_objective, needs_of
from pgdpo.rows.manifest import GIVEN, PICTURES, CheckedRow, PairRow, carried, spread
from pgdpo.rows.schema import MANIFEST, columns, cut_labels
from pgdpo.sampling import how_sampled
from pgdpo.training.opening import compare_prepared, open_pairs, require_images
from pgdpo.training.task.checks import (
    check_noise,
    check_reference,
    check_rows,
    check_streams,
    divide_frames,
    frame_segments,
)
from pgdpo.training.trackers import check_trackers

TOY_PROMPT = "a large green square moving up"  # as the toy's are, where no row is read


def model_problems(
    inspected: Inspection,
    splits: dict[str, Sequence[CheckedRow]],
    clips: Mapping[str, Clip],
    *,
    full: bool = False,
) -> Iterator[Problem]:
    """All of them. What a model that is not on this machine would say is a warning: it was not asked.

    `clips`: the rows' clips as decoded, by where they lie. `full`: prepared data against the hashes of all clips, also
    of those of unchanged name, size and time.
    """
    config = inspected.loaded
    try:
        family = open_family(config.model)
        encoders = family.load_encoders(torch.device("cpu"))
    except InputError as error:
        yield _of_message(inspected, str(error), "model.path", config.model.path)
        return
    fits = False
    try:
        family.check_fps(config.data)
    except InputError as error:
        yield _of_message(inspected, str(error), "data.fps", config.data.fps)
    yield from _shifts(inspected, family)
    try:
        misfits = list(_sizes(inspected, family))
        fits = not misfits
        yield from misfits
        if fits:
            for rows in splits.values():
                yield from _segments(family, _planned(config, rows, clips))
        given = [*splits.get("held_out", []), *splits["train"]]
        prompt = given[0].values["prompt"] if given else TOY_PROMPT
        yield from _of_parts(inspected, lambda part, family: _settings(part, family, prompt))
        for rows in splits.values():
            yield from row_prompt_problems(family, encoders, rows)
        yield from negative_prompt_problems(inspected, family, encoders)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        yield inspected.problem(
            "model.path",
            f"sizes and token lengths were not checked: the model's files are not here ({reason})",
            value=config.model.path,
            allowed="a local diffusers folder, or a hub id that can be reached",
            suggestion="check again where the model is",
            severity="warning",
        )
    for split, rows in splits.items():
        if (config.prepared_folder(split) / "index.json").is_file():
            yield from _prepared(inspected, split, full)
        elif rows and fits:
            yield from _pictures(family, encoders, _planned(config, rows, clips))
            if split == "train":
                yield from _to_prepare(inspected, family, rows, clips)
    if config.reference_mode == "cached":
        yield from _of_parts(inspected, lambda part, family: _cached(part.loaded, family))


def _of_parts(
    inspected: Inspection, look: Callable[[Inspection, Family], Iterable[Problem]]
) -> Iterable[Problem]:
    """What a look says of the run, or of each of the two experts' runs that it is made of, once."""
    parts = [replace(inspected, loaded=part) for part in inspected.loaded.parts]
    found = [problem for part in parts for problem in look(part, open_family(part.loaded.model))]
    return [problem for place, problem in enumerate(found) if problem not in found[:place]]


def _sizes(inspected: Inspection, family: Family) -> Iterator[Problem]:
    for size in inspected.loaded.data.sizes:
        try:
            family.check_clip(*size)
        except InputError as error:
            yield _of_message(inspected, str(error), "data.buckets", list(size))
            return


def _shifts(inspected: Inspection, family: Family) -> Iterator[Problem]:
    """Where clips are sampled at a shift that is not training's."""
    config = inspected.loaded
    trained = config.diffusion.shift
    for size in config.data.sizes:
        sampled = sample_settings(config.evaluate, family.sampling(size[1:])).flow_shift
        if sampled not in (None, trained):
            yield inspected.problem(
                "diffusion.shift",
                f"trains with shift {trained:g} and samples {size_name(size)} with {sampled:g}: the noise levels that "
                "count in sampling are seen at another rate in training",
                value=trained,
                allowed="any; usually that of sampling",
                suggestion=f"set diffusion.shift to {sampled:g}, or evaluate.flow_shift to {trained:g}, unless meant",
                severity="warning",
            )


def _of_message(inspected: Inspection, message: str, key: str, value: object) -> Problem:
    """An InputError's text as a Problem: `data.height is 18; allowed are ...`."""
    named = re.match(r"([a-z_]+(?:\.[\w-]+)+)(?: is ('[^']*'|\[[^\]]*\]|\S+?)[;:,]|\W)", message)
    if named and named[1].partition(".")[0] in Config.model_fields:
        key, value = named[1], named[2] and named[2].strip("'")
    what, *allowed = re.split(r"; allowed(?: are|:) ", message, maxsplit=1)
    allowed, mend = (allowed[0], "take one of these") if allowed else ("", "")
    return inspected.problem(key, what, value=value, allowed=allowed, suggestion=mend)


def _settings(inspected: Inspection, family: Family, prompt: str) -> Iterator[Problem]:
    """What `train` and `evaluate` refuse before they load weights. What this machine alone lacks is a warning if it
    has no GPU. `prompt`: what the reward is tried with."""
    config, gpu = inspected.loaded, torch.cuda.is_available()
    model, adapter, device = config.model, config.model.adapter, torch.device("cuda" if gpu else "cpu")
    name = config.objective["name"]
    needs = needs_of(name, **config.objective_options)
    sharded = config.train.zero_stage == 3 and not model.random_init
    checks: dict[str, Callable[[], object]] = {
        "train.sequence_parallel": lambda: [
            check_sequence_parallel(config, family, family.latent_shape(*size)) for size in config.data.sizes
        ],
        "train.trackers": lambda: check_trackers(config),
        "train.deepspeed": lambda: check_deepspeed(config.train),
        "train.nvme_path": lambda: check_offload(config.train),
        "model.adapter": lambda: adapter and open_adapter(family, adapter),
        "model.path": lambda: sharded and check_files(family),
        "model.attention": lambda: check_attention(config, family, device),
        "model.gradient_checkpointing": lambda: check_selective(model),
        "model.kernels": lambda: check_kernels(model, family, device),
        "objective.name": lambda: check_noise(name, needs, config),
        "train.reference": lambda: check_reference(name, needs, config),
        "evaluate.reward": lambda: config.evaluate.reward == "toy" or try_reward(config, prompt),
    }
    for key, check in checks.items():
        try:
            check()
        except InputError as error:
            problem = _of_message(inspected, str(error), key, None)
            elsewhere = isinstance(error, MachineError) and not gpu
            yield replace(
                problem,
                severity="warning" if elsewhere else "error",
                suggestion="check again on a machine that trains" if elsewhere else problem.suggestion,
            )


def _segments(family: Family, pairs: Iterable[tuple[CheckedRow, PairPlan]]) -> Iterator[Problem]:
    """Labels by time, of which those count that lie in what is taken of the clips."""
    first = None
    for row, plan in pairs:
        frames = family.latent_shape(*plan.size)[1] - family.lead
        labels = cut_labels({**columns(row.values), **row.values}, plan.span).get("segment_labels")
        if labels is None:
            continue
        key = "segment_labels" if row.values.get("segment_labels") is not None else "segments"
        first = first or len(labels)
        if len(labels) > frames:
            yield row.problem(
                f"{len(labels)} segments, and the latents have {frames} frames",
                key="segments",
                value=len(labels),
                allowed=f"at most {frames} segments",
                suggestion="join segments, or take more frames (data.num_frames)",
            )
        elif len(labels) != first:
            yield row.problem(
                f"{len(labels)} segments lie in the part of the clips that is taken, and {first} in the first row's",
                key=key,
                value=len(labels),
                allowed="one number in all rows",
                suggestion="cut all clips into equally long segments",
            )
        elif key == "segment_labels" and not plan.whole:
            yield row.problem(
                f"`segment_labels` are of whole clips, and seconds {plan.span[0]:g} to {plan.span[1]:g} are taken",
                key=key,
                value=labels,
                allowed="`segments` with their times, of which those that are seen are taken",
                suggestion="write `segments`, or take whole clips",
                severity="warning",
            )


def _prepared(inspected: Inspection, split: str, full: bool) -> Iterator[Problem]:
    """Prepared data that are not of what this configuration names, damaged, or not what rules and objective read."""
    config, folder = inspected.loaded, inspected.loaded.prepared_folder(split)
    try:
        compared = compare_prepared(config, split, full=full)
        for note in compared.notes:
            say(note)
        for one in compared.found:
            yield replace(one.problem, allowed=f"what {folder} was prepared from", suggestion=compared.mend)
        if compared.found:
            return
        if not full:
            say(
                f"{folder}: a clip replaced by one of the same size and time, or a file damaged on the disk, isn't "
                "seen without --full"
            )
        data = open_pairs(config, split, compare=False, full=full)
        require_images(data, open_family(config.model))
        if split == "held_out":
            how_sampled(config, open_family(config.model), data)
        else:
            objective = build_objective(config.objective["name"], **config.objective_options)
            check_rows(objective.name, objective.needs, data)
            check_streams(config, data)
            for size in sorted(set(data.group_sizes)) if data.kind == "group" else ():
                objective.check_groups(size)
            _left(config, data.rows)
            frame_segments(objective, config, data)
    except InputError as error:
        if str(folder) not in str(error):  # of data.select, .weight, .order or .segments
            yield _of_message(inspected, str(error), "data.select", None)
            return
        # The message may end with what to do, which has a place of its own here.
        what, *mend = re.split(
            r"[:;] (?=run `pgdpo prepare`)", str(error).removeprefix(f"{folder}/"), maxsplit=1
        )
        yield Problem(
            str(folder),
            what,
            f"prepared/{split}",
            str(folder),
            "what `pgdpo prepare` makes of this configuration",
            mend[0] if mend else "run `pgdpo prepare` again",
        )


def _pictures(
    family: Family, encoders: Encoders, pairs: Iterable[tuple[CheckedRow, PairPlan]]
) -> Iterator[Problem]:
    """Masks in which nothing is left at the size that is trained on, and images that are none."""
    for row, plan in pairs:
        files = {key: _local(row.clips[key]) for key in PICTURES if key in row.clips}
        pair = PairRow(row.values["id"], row.values["prompt"], dict.fromkeys(row.sides, Path()), **files)
        checks: dict[str, Callable[[], object]] = {}
        if pair.mask is not None:
            grid = family.latent_shape(*plan.size)[1:]
            checks["mask"] = lambda pair=pair, plan=plan, grid=grid: read_mask(pair, plan, grid, family.lead)
        for frame in encoders.pictures:
            if (key := GIVEN.get(frame)) in files and plan.reaches(frame):
                checks[key] = lambda pair=pair, plan=plan, at=(frame,): read_pictures(pair, {}, plan, at)
        for key, check in checks.items():
            try:
                check()
            except InputError as error:
                yield row.problem(
                    str(error),
                    key=key,
                    value=row.values[key],
                    allowed="a mask with white in it" if key == "mask" else "a picture",
                    suggestion="make it anew, or leave the row out",
                )


def _planned(
    config: Config, rows: Sequence[CheckedRow], clips: Mapping[str, Clip]
) -> Iterator[tuple[CheckedRow, PairPlan]]:
    """Every pair that the rows give, and which part of its clips is taken; they are without errors."""
    sampling, sizes = Sampling.of(config.data, config.fps), config.data.sizes
    for row in spread(list(rows), sampling.spans):
        name, infos = row.values["id"], {side: clips[row.clips[side]].info for side in row.sides}
        yield row, planned(name, infos, sizes[bucket_of(name, infos, sizes, sampling)], sampling)


def _local(location: str) -> Path:
    return fetch(location) if is_url(location) else Path(location)


def _to_prepare(
    inspected: Inspection, family: Family, rows: Sequence[CheckedRow], clips: Mapping[str, Clip]
) -> Iterator[Problem]:
    """What `train` would refuse of rows that are not prepared yet: rules that leave none, segments that don't fit."""
    config = inspected.loaded
    data, needs = config.data, needs_of(config.objective["name"], **config.objective_options)
    if not rows:
        return  # said of data.ties
    taken = list(_planned(config, rows, clips))
    pairs = [
        {"id": row.values["id"], "prompt": row.values["prompt"], **cut_labels(more, plan.span)}
        | {f"sha256_{side}": clips[row.clips[side]].sha256 for side in row.sides}
        for (row, plan), more in zip(taken, carried([row for row, _ in taken]), strict=True)
    ]
    frames = [family.latent_shape(*size)[1] for size in data.sizes]
    objective = build_objective(config.objective["name"], **config.objective_options)
    sizes = sorted({len(row.sides) for row in rows if row.kind == "group"})
    checks: dict[str, Callable[[], object]] = {
        "objective": lambda: [objective.check_groups(size) for size in sizes],
        "data.segments": lambda: divide_frames(needs, data.segments, pairs[0], frames, family.lead),
        "data.select": lambda: _left(
            config, curated(pairs, _without_embeddings(data), spread=_alike, seed=config.train.seed)[0]
        ),
    }
    for key, check in checks.items():
        try:
            check()
        except InputError as error:
            yield _of_message(inspected, str(error), key, None)


def _left(config: Config, rows: Sequence[Mapping]) -> None:
    """Raises InputError where no pair is left of a manifest that has a share of the visits."""
    shares = shares_of(config.data)
    if shares is not None:
        check_left(shares, {row[MANIFEST] for row in rows})


def _without_embeddings(data: DataConfig) -> DataConfig:
    """`data.select` up to the first rule that chooses by embeddings: which pairs it leaves is not known here."""
    known = itertools.takewhile(lambda rule: not (rule.by == "fifa" and rule.diversity_weight), data.select)
    return data.model_copy(update={"select": data.select[: len(list(known)) + 1]})


def _alike(prompts: list[str], neighbours: int) -> np.ndarray:
    return np.zeros(len(prompts))


def _cached(config: Config, family: Family) -> Iterator[Problem]:
    """Errors of the reference that are missing, or another's."""
    from pgdpo.training.references import open_cached, reference_folder

    try:
        data = open_pairs(config, "train", compare=False)
    except InputError:
        return  # said of the prepared data
    try:
        open_cached(config, family, data, torch.device("cpu"))
    except InputError as error:
        yield Problem(
            str(reference_folder(config)),
            str(error),
            "train.reference",
            config.train.reference,
            "errors of this reference, on these pairs and draws",
            "run `pgdpo reference` with this configuration",
            severity="warning",
        )
