"""Preference rows: one JSON object a line, a chosen and a rejected clip for one prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from pgdpo.errors import InputError

REQUIRED = ("id", "prompt", "chosen", "rejected")


@dataclass(frozen=True)
class PairRow:
    """One row of a manifest. `extra` holds the keys that are carried along: scores, weight, dimensions, ..."""

    id: str
    prompt: str
    chosen: Path
    rejected: Path
    extra: dict = field(default_factory=dict)


def read_manifest(path: str | Path) -> list[PairRow]:
    """Rows of a JSONL manifest; clip paths are relative to the manifest.

    Raises InputError naming file, line, key and value when the file is missing or empty, a line is not a JSON
    object, a key is missing or not text, an id stands twice, or a clip is not there.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such manifest; set data.train to a JSONL file or to `toy`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    rows: list[PairRow] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parse_row(f"{path}:{number}", line, path.parent)
        if row.id in seen:
            raise InputError(
                f"{path}:{number}: id `{row.id}` stands on line {seen[row.id]} already; ids fix a pair's timesteps "
                "and noise, so each must be used once"
            )
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise InputError(
            f"{path}: the manifest is empty; each line must be a JSON object with {', '.join(REQUIRED)}"
        )
    return rows


def _parse_row(where: str, line: str, folder: Path) -> PairRow:
    try:
        raw = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(raw, dict):
        raise InputError(
            f"{where}: expected a JSON object with {', '.join(REQUIRED)}, found {type(raw).__name__}"
        )
    for key in REQUIRED:
        if key not in raw:
            raise InputError(f"{where}: key `{key}` is missing; a row needs {', '.join(REQUIRED)}")
        if not isinstance(raw[key], str) or (not raw[key] and key != "prompt"):
            raise InputError(f"{where}: `{key}` is {raw[key]!r}; expected text")
    clips = {key: folder / raw[key] for key in ("chosen", "rejected")}
    for key, clip in clips.items():
        if not clip.is_file():
            raise InputError(
                f"{where}: `{key}` of pair `{raw['id']}` is {raw[key]!r}: no file at {clip}; paths are relative to "
                "the manifest"
            )
    extra = {key: value for key, value in raw.items() if key not in REQUIRED}
    return PairRow(raw["id"], raw["prompt"], clips["chosen"], clips["rejected"], extra)
