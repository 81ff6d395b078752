"""The prepared pairs of a configuration, opened and held against what it names."""

from __future__ import annotations

import json
import shlex
from typing import Any

import torch

from pgdpo.checkpoints.record import read_record
from pgdpo.config import Config
from pgdpo.data.curation.apply import curate, examine
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.preparing import stale
from pgdpo.data.shards import read_index
from pgdpo.data.sources import shares_of, source_names
from pgdpo.messages.console import say
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.family import Family
from pgdpo.objectives import get_spec
from pgdpo.ranks import agreement


def open_pairs(
    config: Config, split: str, *, compare: bool = True, whole: bool = False, **options: Any
) -> PreparedPairs:
    """The prepared pairs of `train` (those that `data.select` keeps) or `held_out`; `options` of PreparedPairs.

    Of groups it holds the best and the worst sample alone where the objective reads no other, unless `whole` asks for
    all. `compare`: hold what they were made of against what the configuration names (`data/preparing/stale.py`). With
    torch.distributed every rank must call it: the main rank compares for all, and each file is looked at by one rank.

    Raises InputError if they were prepared from something else or with other settings, or lack what a rule reads, or
    hold what ranks cannot share (`train.zero_stage`).
    Whether the model is conditioned on images is not looked at: `require_images` does.
    """
    data = config.data
    if compare:
        agreement.on_main(lambda: _refuse_stale(config, split))
    pairs = PreparedPairs(
        config.prepared_folder(split),
        expect={"sizes": [list(size) for size in data.sizes]},
        seed=config.train.seed,
        caption_dropout=data.caption_dropout if split == "train" else 0.0,
        shared=agreement.shared,
        **options,
    )
    pairs.sources = source_names(data, split)
    if split == "train":
        pairs.shares = shares_of(data)
        pairs.curation = curate(pairs, data, seed=config.train.seed, once=agreement.on_main)
    if compares_ends(config) and not whole:
        pairs.keep_ends()
    _check_streams(config, pairs)
    return pairs


def _check_streams(config: Config, pairs: PreparedPairs) -> None:
    """Raises InputError where ranks that share each layer's weights would wait for each other, some with sound and some
    without: `engine/silent.py` serves the stages below."""
    silent = [row["id"] for row in pairs.rows if not pairs.has_sound(row)]
    if config.train.zero_stage == 3 and 0 < len(silent) < len(pairs):
        raise InputError(
            f"{pairs.folder / 'index.json'}: {len(silent)} of {len(pairs)} rows have no sound, the first is "
            f"`{silent[0]}`, and train.zero_stage is 3: ranks with sound and ranks without would wait for each "
            "other; leave these rows out, set model.audio to false, or take zero_stage 2"
        )


def compares_ends(config: Config) -> bool:
    """Whether the objective reads of each group its best and its worst sample alone."""
    pairing = config.objective_options.get("pairing") or "best_worst"
    return not get_spec(config.objective["name"]).groups and pairing == "best_worst"


def _refuse_stale(config: Config, split: str) -> None:
    """Raises InputError where the prepared data are of something else than the configuration names."""
    compared = compare_prepared(config, split)
    for note in compared.notes:
        say(note)
    if compared.found:
        raise InputError(str(compared))


def compare_prepared(config: Config, split: str, *, full: bool = False) -> stale.Comparison:
    """What is another than it was when `split` was prepared; `full` as `data.stale.compare` takes it.

    Raises InputError if it was not prepared, or by another version.
    """
    folder = config.prepared_folder(split)
    index = read_index(folder)
    try:
        encoders = open_family(config.model).load_encoders(torch.device("cpu"))  # none of their weights
    except InputError:  # said by what needs the model
        encoders = None
    return stale.compare(folder, index, config, split, encoders, typed=_to_type(config, split), full=full)


def require_images(pairs: PreparedPairs, family: Family) -> None:
    """Raises InputError unless the pairs were prepared with the images that the model is conditioned on."""
    pairs.require(image=sorted(family.image_names))


def show_curated(config: Config) -> dict:
    """What `data.select` and `data.weight` keep of the prepared pairs and why, sources, and the probe; as a dict."""
    data = open_pairs(config, "train")
    for kept in data.curation:
        say(f"data.select {kept}")
    found = examine(data)
    counts = ", ".join(f"{name}: {count}" for name, count in found["sources"].items())
    say(f"{len(data)} of {len(data.index['pairs'])} {data.kind}s are trained on; sources: {counts}")
    say(found["verdict"])
    return found


def _to_type(config: Config, split: str) -> str:
    """The override that names a run's own rows: its record's, by which `evaluate` and `train --resume` go."""
    record = read_record(config.run_dir) if split == "train" or config.data.splits_itself else None
    if record is None or record.data.train != config.data.train:
        return ""
    train = config.data.model_dump(mode="json", exclude_none=True)["train"]
    named = train if isinstance(train, str) else json.dumps(train)
    return (
        f" (the run {config.run_dir} has its own data.train: type {shlex.quote(f'data.train={named}')} with it if "
        "the file names another)"
    )
