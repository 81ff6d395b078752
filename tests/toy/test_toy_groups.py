"""The toy world's groups: every clip once, best first by the true reward; pairs stay what they were."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.config import DataConfig
from pgdpo.config.read import load_config
from pgdpo.data.preparing.made_of import named_source
from pgdpo.messages.errors import InputError
from pgdpo.rows.manifest import scan_manifest
from pgdpo.toy.clips import render_dataset
from pgdpo.toy.reward import true_reward
from pgdpo.toy.scene import example, group, render
from pgdpo.video import read_video
from tests.worlds import write_config

FEW = {"train_pairs": 3, "held_out_pairs": 2, "seed": 7}


def rows(manifest) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


@pytest.mark.parametrize("samples", [3, 8])
def test_groups_stand_by_their_true_reward_best_first(tmp_path, samples):
    for split, count, manifest in zip(
        ("train", "held_out"), (3, 2), render_dataset(tmp_path, **FEW, samples=samples), strict=True
    ):
        assert scan_manifest(manifest)[1] == []
        assert [row["id"] for row in rows(manifest)] == [f"{split}-{number:05d}" for number in range(count)]
        for number, row in enumerate(rows(manifest)):
            assert len(row["samples"]) == samples == len({each["clip"] for each in row["samples"]})
            assert row["prompt"] == example(7, number, split=split).prompt
            measured = [
                true_reward(read_video(tmp_path / each["clip"]), row["prompt"]).total
                for each in row["samples"]
            ]
            assert [each["score"] for each in row["samples"]] == measured == sorted(measured, reverse=True)
            assert all(each["scores"]["total"] == each["score"] for each in row["samples"])
            assert [each["rank"] for each in row["samples"]] == [
                len({better for better in measured if better > own}) for own in measured
            ]
            assert sorted(row["strength"])[0] == 0 and len(set(row["strength"])) == samples


@settings(deadline=None, max_examples=10)
@given(
    st.integers(0, 2**31), st.integers(0, 10**6), st.integers(3, 8), st.sampled_from(["train", "held_out"])
)
def test_a_group_is_one_scene_with_rising_damage(seed, index, samples, split):
    drawn, again = (group(seed, index, samples, split=split) for _ in range(2))
    clips = [render(scene) for scene in drawn.scenes]
    assert all(np.array_equal(clip, render(scene)) for clip, scene in zip(clips, again.scenes, strict=True))
    pair = example(seed, index, split=split)
    assert np.array_equal(clips[0], render(pair.chosen)) and drawn.defect == pair.defect
    assert len({clip.tobytes() for clip in clips}) == samples
    assert drawn.strengths[0] == 0 and np.all(np.diff(drawn.strengths) > 0)
    assert not set(drawn.strengths[1:]) & set(group(seed, index + 1, samples, split=split).strengths)
    edges = 0.1 + 0.9 * np.arange(samples) / (samples - 1)  # one grade in each part
    assert np.all(edges[:-1] < drawn.strengths[1:]) and np.all(drawn.strengths[1:] <= edges[1:])


def test_each_clip_of_a_group_has_a_defect_of_its_own_draws():
    """Damage of one draw at several strengths would move every frame along one line."""
    drawn = next(each for index in range(50) if (each := group(0, index, 3)).defect == "jump")
    leaps = [
        (scene.position - drawn.scenes[0].position) / strength
        for scene, strength in zip(drawn.scenes[1:], drawn.strengths[1:], strict=True)
    ]
    assert not np.allclose(*leaps)


def test_groups_are_a_function_of_their_parameters_and_resume(tmp_path):
    train, _ = render_dataset(tmp_path / "a", **FEW, samples=3)
    first, calls = files(tmp_path / "a"), []

    def again(**more) -> dict[str, bytes]:
        render_dataset(
            tmp_path / "a", **FEW, samples=3, progress=lambda done, total: calls.append(total), **more
        )
        return files(tmp_path / "a")

    assert again() == first and calls == []
    (tmp_path / "a" / rows(train)[1]["samples"][2]["clip"]).unlink()
    assert again() == first and calls == [5] * 5
    render_dataset(tmp_path / "b", **FEW)  # pairs, then groups in the same folder
    render_dataset(tmp_path / "b", **FEW, samples=3)
    assert (tmp_path / "b" / "train.jsonl").read_bytes() == train.read_bytes()


def test_pairs_are_what_they_were(tmp_path):
    """Folders and parameters of pairs have no word of groups: data that were rendered before them stay."""
    (train, _) = render_dataset(tmp_path, **FEW, samples=2)
    parameters = {"format": 1, "seed": 7, "train": 3, "held_out": 2, "side": 64, "num_frames": 12, "fps": 8}
    assert json.loads((tmp_path / "toy.json").read_text())["parameters"] == parameters
    digest = hashlib.sha256(json.dumps(parameters | {"train": None, "held_out": None}).encode()).hexdigest()
    keys = [
        "id",
        "prompt",
        "chosen",
        "rejected",
        "fps",
        "num_frames",
        "width",
        "height",
        "defect",
        "strength",
        "scores",
    ]
    assert [list(row) for row in rows(train)] == [keys] * 3
    assert rows(train)[2]["rejected"] == f"clips/{digest[:8]}/train-00002-rejected.mp4"


def test_prepared_data_know_groups_from_pairs():
    toys = [DataConfig.model_validate({"train": "toy", "toy": toy}) for toy in ({}, {"samples": 4})]
    settings = [named_source(data, "train")["toy"] for data in toys]
    assert settings == [
        {"format": 1, "seed": 0, "pairs": 96},
        {"format": 1, "seed": 0, "pairs": 96, "samples": 4},
    ]


@pytest.mark.parametrize("samples", [1, 9])
def test_a_group_has_two_to_eight_clips(tmp_path, samples):
    config = write_config(tmp_path / "config.yaml", tmp_path / "out", tmp_path / "model")
    with pytest.raises(InputError, match=rf"data\.toy\.samples.*{samples}.*(≥ 2|2 to 8|≤ 8)"):
        load_config(config, [f"data.toy.samples={samples}"])
