"""Prepared worlds of groups: the toy's lists of four clips, and manifests that are made of their rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from tests.worlds import run_pgdpo, share_pairs, write_config

SPLITS = ("train", "held_out")
TRAIN = {
    "steps": 2,
    "learning_rate": 0.02,
    "checkpoint_every": 2,
}  # so fast that a wrong formula shows at once


def toy_lists(folder: Path, tiny_wan: Path) -> Path:
    """`folder/out/{toy,prepared}`: 8 lists of 4 clips to train on, 2 held out. Returns the folder."""
    data = {"toy": {"train_pairs": 8, "held_out_pairs": 2, "samples": 4}}
    (folder / "tiny_wan").symlink_to(tiny_wan)
    write_config(folder / "config.yaml", folder / "out", folder / "tiny_wan", data=data, train=TRAIN)
    run_pgdpo("prepare", folder / "config.yaml")
    return folder


def made_of(world: Path, folder: Path, make: Callable[[int, dict], Iterable[dict]], **sections: dict) -> Path:
    """As `toy_lists`, of the rows that `make` gives for each row of `world`'s, by number; the clips are the same."""
    (folder / "tiny_wan").symlink_to(world / "tiny_wan")
    data = {"toy": {"train_pairs": 8, "held_out_pairs": 2, "samples": 4}}
    for split in SPLITS:
        rows = rows_of(world / "out" / "toy" / f"{split}.jsonl")
        made = [new for number, row in enumerate(rows) for new in make(number, row)]
        data[split] = str(save(world / "out" / "toy" / f"{folder.name}-{split}.jsonl", made))
    sections = {"data": data | sections.pop("data", {}), "train": TRAIN, **sections}
    write_config(folder / "config.yaml", folder / "out", folder / "tiny_wan", **sections)
    run_pgdpo("prepare", folder / "config.yaml")
    (folder / "out" / "toy").symlink_to(world / "out" / "toy")
    return folder


def own_config(world: Path, folder: Path) -> Path:
    """A configuration for one test: its prepared groups are those of `world`, what it trains is its own."""
    config = yaml.safe_load((world / "config.yaml").read_text(encoding="utf-8"))
    config["output_dir"] = str(share_pairs(folder, world))
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder / "config.yaml"


def trained_on(config: Path) -> dict[str, dict]:
    """Id -> row of the manifest that a configuration trains on."""
    named = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["train"]
    path = config.parent / "out" / "toy" / "train.jsonl" if named == "toy" else Path(named)
    return {row["id"]: row for row in rows_of(path)}


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def save(path: Path, rows: Iterable[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def ragged(number: int, row: dict) -> list[dict]:
    """Lists of 4, 3 and 2 samples, with a thumb up for the better half."""
    samples = row["samples"][: 4 - number % 3]
    labels = [1 if 2 * place < len(samples) else -1 for place in range(len(samples))]
    return [row | {"samples": [one | {"label": label} for one, label in zip(samples, labels, strict=True)]}]


def singles(number: int, row: dict) -> list[dict]:
    """Each of its first and last clips by itself, with a thumb up and down."""
    ends = (("good", row["samples"][0], 1), ("bad", row["samples"][-1], -1))
    return [
        row | {"id": f"{row['id']}-{name}", "samples": [{"clip": sample["clip"], "label": label}]}
        for name, sample, label in ends
    ]
