"""A small prepared world that tests change afterwards; how: tests/data/changed_data.py."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.changed_data import SPLITS, clip, rows_of, save
from tests.models.families import FAMILIES
from tests.worlds import eagerly, run_pgdpo, write_config


@pytest.fixture(scope="session")
def prepared_once(tmp_path_factory):
    """A folder with a pipeline, manifests, prepared pairs and a run of one step; all its paths are relative."""
    folder = tmp_path_factory.mktemp("prepared")
    FAMILIES["wan"].save(folder / "model")
    (folder / "data/clips").mkdir(parents=True)
    seed = 0
    here = os.getcwd()
    os.chdir(folder)
    try:
        for split in SPLITS:
            rows = rows_of(split)
            save(split, rows)
            for row in rows:
                for side in ("chosen", "rejected"):
                    clip(folder / "data" / row[side], seed := seed + 1)
                if "mask" in row:
                    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(folder / "data" / row["mask"])
        data = {split: f"data/{split}.jsonl" for split in SPLITS} | {
            "num_frames": 5,
            "fps": 8,
            "pairs_per_shard": 2,
        }
        write_config(
            folder / "config.yaml",
            "out",
            "model",
            data=data,
            model={"encoders": "pipeline"},
            train={"steps": 1, "global_batch_groups": 2},
            evaluate={"reward": None},
        )
        run_pgdpo("prepare", "config.yaml")
        with eagerly():
            run_pgdpo("train", "config.yaml")
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def changed_world(prepared_once, tmp_path, monkeypatch):
    """A copy of it, which is the working folder."""
    copy = shutil.copytree(prepared_once, tmp_path / "world")
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def counted(monkeypatch):
    """Counts what is encoded from here on: `clips` and `prompts`."""
    from pgdpo.models.encoders.wan import WanEncoders

    counts = {"clips": 0, "prompts": 0}
    video, prompts = WanEncoders.encode_video, WanEncoders.encode_prompts

    def encode_video(self, frames):
        counts["clips"] += 1
        return video(self, frames)

    def encode_prompts(self, batch):
        counts["prompts"] += len(batch)
        return prompts(self, batch)

    monkeypatch.setattr(WanEncoders, "encode_video", encode_video)
    monkeypatch.setattr(WanEncoders, "encode_prompts", encode_prompts)
    return counts
