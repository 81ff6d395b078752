"""Where a configuration's commands write."""

from __future__ import annotations

from pathlib import Path

from pgdpo.config import Config


def places_of(config: Config) -> list[tuple[str, Path]]:
    """(key, folder) of what `prepare` and `train` write to: the run, and pairs that are not prepared yet."""
    key = "output_dir" if config.data.prepared is None else "data.prepared"
    splits = ["train", "held_out"] if config.data.held_out is not None else ["train"]
    prepared = [config.prepared_dir / split for split in splits]
    new = [(key, folder) for folder in prepared if not (folder / "index.json").is_file()]
    return [("output_dir", config.run_dir), *new]
