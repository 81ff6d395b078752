"""What prepared data were made of: the part `made_of` of a prepared folder's index, by which later commands see what
is another by now (`stale.py`), and `prepare` what it need not make anew (`earlier.py`).

    "made_of": {
        "source": "data/train.jsonl",   # as the configuration names it or them, and of the toy its settings
        "toy": null,
        "ties": "drop",
        "split": {"share": 0.05, "by": "prompt"},  # where data.held_out is a share of data.train
        "latent_dtype": "bfloat16",
        "encoding": 3,                  # shards.ENCODING
        "sampling": {"fps": 16.0, "clip": "first", "upsample": false},
        "parts": {"clips": {"vae": "..."}, "text": {"tokenizer": "...", "text_encoder": "..."}},
                                    # and "sound": {"audio_vae": "..."} where they hear
        "pairs": {                      # every row of the manifest, in its order; those that were left out as bad too
            "0001": {"chosen": ["clips/0001-a.mp4", bytes, mtime in ns, SHA-256], "rejected": [...],
                     "fps": 30.0, "view": "16 a second from 0 s"}  # the clips' own rate; what clips.PairPlan.view says
                                    # and, of a row that names pictures, "unread": those that frames stand for;
                                    # where the encoders hear, "sound": what is done to it, "" where there is none
        }                               # of a group "sample0": [...], "sample1": [...], ...
    }

A file is known by the name that its row gives it (after its manifest's, where there are several), its size and time;
only where one of them is another, it is read. One that is replaced at equal size and time is seen by `check --full` and
`prepare --full` alone. The rows' prompts and labels stand in the index's `pairs` themselves, sizes and the encoders'
fingerprint beside them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pgdpo.config import DataConfig
from pgdpo.data.clips import Sampling, files_of
from pgdpo.data.shards import ENCODING
from pgdpo.files.atomic import sha256_of
from pgdpo.rows.manifest import GIVEN, PairRow
from pgdpo.toy import clips as toy

FileEntry = list  # name in the row, bytes, mtime in ns, SHA-256
SEEN = (
    "fps",
    "view",
    "span",
    "unread",
    "sound",
)  # what a record says, beside the files, of how a good row's clips were seen


def named_source(data: DataConfig, split: str) -> dict[str, Any]:
    """Which rows a configuration names for `train` or `held_out`, in words of its own."""
    source, settings = getattr(data, split), None
    if source == "toy":
        pairs = getattr(data.toy, f"{split}_pairs")
        settings = {"format": toy.FORMAT, "seed": data.toy.seed, "pairs": pairs}
        if data.toy.samples != 2:  # what was prepared before groups has no such setting
            settings["samples"] = data.toy.samples
        if data.toy.sound:
            settings["sound"] = toy.SOUND_FORMAT
    elif split == "held_out" and data.splits_itself:
        source = data.train
    if isinstance(source, list):  # how often they are visited is no matter of what is prepared
        source = [each.model_dump(exclude={"share"}, exclude_none=True) for each in source]
        source = source[0]["manifest"] if len(source) == 1 and "most" not in source[0] else source
    split_by = {"split": data.held_out.model_dump()} if data.splits_itself else {}
    return {"source": source, "toy": settings, "ties": data.ties, **split_by}


def record(
    data: DataConfig,
    split: str,
    parts: Mapping,
    sampling: Sampling,
    pairs: dict[str, dict[str, FileEntry | float | str]],
) -> dict[str, Any]:
    """The whole part; `parts`: of the encoders."""
    return {
        **named_source(data, split),
        "latent_dtype": data.latent_dtype,
        "encoding": ENCODING,
        "parts": parts,
        "sampling": asdict(sampling),
        "pairs": pairs,
    }


def entries(pair: Mapping) -> dict[str, FileEntry]:
    """The files of one of the record's `pairs`, by key."""
    return {key: entry for key, entry in pair.items() if key not in SEEN}


def names_pictures(files: Collection[str]) -> bool:
    """Whether a row has a picture for the model among its files; its mask is none."""
    return any(key in files for key in GIVEN.values())


def pictures_of(index: Mapping) -> list[int]:
    """Of which frames the model was given a picture: of the first where an earlier version does not say."""
    return index.get("pictures", [0] if index.get("image") else [])


class Hashes:
    """SHA-256 of files, which are read only where no earlier record has one of that name, size and time."""

    def __init__(self, pairs: Iterable[Mapping] = ()) -> None:
        """`pairs`: of an earlier record."""
        known = [entry for pair in pairs for entry in entries(pair).values()]
        self._known = {(name, size, time): digest for name, size, time, digest in known}

    def entry(self, name: str, path: Path) -> FileEntry:
        """Raises OSError."""
        found = path.stat()  # before it is read: what is written meanwhile has another time
        key = (name, found.st_size, found.st_mtime_ns)
        if key not in self._known:
            self._known[key] = sha256_of(path)
        return [*key, self._known[key]]

    def files(self, row: PairRow, pictures: Collection[int]) -> dict[str, FileEntry]:
        """What a record holds of a row's files."""
        files = files_of(row, pictures)
        return {key: self.entry(row.named[key], file) for key, file in files.items()}
