"""The toy world: reproducible clips, and a true reward that sees every defect."""

import json
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.toy.clips import render_dataset
from pgdpo.toy.reward import true_reward
from pgdpo.toy.scene import COLOURS, DEFECTS, DIRECTIONS, SHAPES, example, prompt_words, render
from pgdpo.video import probe_video, read_video
from tests.worlds import read_manifest

PROMPT = "a large red circle moving left"
SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    return render_dataset(folder, train_pairs=48, held_out_pairs=16)


@pytest.fixture(scope="module")
def decoded(dataset) -> list[tuple]:
    """(chosen clip, rejected clip, prompt, strength) of every pair."""
    return [
        (*(read_video(manifest.parent / row[side]) for side in SIDES), row["prompt"], row["strength"])
        for manifest in dataset
        for row in rows(manifest)
    ]


def rows(manifest) -> list[dict]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def halved(clip: np.ndarray) -> np.ndarray:
    frames, height, width, _ = clip.shape
    return clip.reshape(frames, height // 2, 2, width // 2, 2, 3).mean((2, 4)).round().astype(np.uint8)


def degraded(clip: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    """Blurred by a 3 x 3 binomial kernel, then noisy: what an undertrained model draws."""
    clip = clip.astype(float)
    for axis in (1, 2):
        clip = (np.roll(clip, 1, axis) + 2 * clip + np.roll(clip, -1, axis)) / 4
    return (clip + rng.normal(0, noise, clip.shape)).clip(0, 255).astype(np.uint8)


def ranked(pairs, view) -> tuple[float, list]:
    """The share of pairs whose chosen clip scores higher, and the strengths of those that do not."""
    wrong = []
    for chosen, rejected, prompt, strength in pairs:
        if true_reward(view(chosen), prompt).total <= true_reward(view(rejected), prompt).total:
            wrong.append(strength)
    return 1 - len(wrong) / len(pairs), wrong


def test_manifests_hold_what_the_clips_hold(dataset):
    train, held_out = dataset
    assert len(read_manifest(train)) == 48 and len(read_manifest(held_out)) == 16
    for manifest in dataset:
        row = rows(manifest)[-1]
        for side in SIDES:
            clip = manifest.parent / row[side]
            info = probe_video(clip)
            assert (info.width, info.height, info.num_frames, info.fps) == (64, 64, 12, 8)
            assert all(getattr(info, key) == row[key] for key in ("width", "height", "num_frames", "fps"))
            assert row["scores"][side]["total"] == true_reward(read_video(clip), row["prompt"]).total
    assert {row["defect"] for row in rows(train)} == set(DEFECTS)
    strengths = [row["strength"] for row in rows(train)]
    assert 0.1 < min(strengths) < 0.2 and 0.9 < max(strengths) <= 1


def test_held_out_prompts_are_partly_new(dataset):
    seen, asked = ({prompt_words(row["prompt"])[1:] for row in rows(manifest)} for manifest in dataset)
    assert asked - seen
    training = {prompt_words(example(0, i).prompt)[1:] for i in range(2000)}
    unseen = [prompt_words(example(0, i, split="held_out").prompt)[1:] not in training for i in range(40)]
    assert unseen == [False, True] * 20


def test_dataset_is_a_function_of_its_parameters_and_resumes(tmp_path):
    calls = []
    few = {"train_pairs": 3, "held_out_pairs": 2, "seed": 7}
    first = render_dataset(tmp_path / "a", **few, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 5) for i in range(5)]
    files = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")}

    def rendered_again(change) -> int:
        change()
        calls.clear()
        render_dataset(tmp_path / "a", **few, progress=lambda done, total: calls.append((done, total)))
        now = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.*")}
        assert now == files
        return len(calls)

    clip = first[0].parent / rows(first[0])[1]["rejected"]
    assert rendered_again(lambda: None) == 0
    assert rendered_again((tmp_path / "a" / "toy.json").unlink) == 5  # stopped before the end
    assert rendered_again(clip.unlink) == 5
    assert rendered_again(lambda: first[0].write_text("{}\n")) == 5

    other = render_dataset(tmp_path / "b", **{**few, "seed": 8})
    assert rows(other[0])[0]["scores"] != rows(first[0])[0]["scores"]
    render_dataset(tmp_path / "b", **few)  # another seed in the same folder
    assert other[0].read_bytes() == first[0].read_bytes()


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 10**6))
def test_an_example_depends_on_seed_and_index_alone(seed, index):
    pair, again = example(seed, index), example(seed, index)
    assert np.array_equal(render(pair.rejected), render(again.rejected))
    assert pair.chosen.prompt == pair.rejected.prompt == pair.prompt
    clip = render(pair.chosen)
    assert not np.array_equal(clip, render(example(seed + 1, index).chosen))
    assert not np.array_equal(clip, render(example(seed, index, split="held_out").chosen))
    # The flawless shape never leaves the frame: its outermost pixels show the ground alone.
    assert max(clip[:, :, [0, -1]].max(), clip[:, [0, -1]].max()) < 60
    assert np.array_equal(render(example(seed, index, strength=0.0).rejected), clip)


def test_chosen_scores_above_rejected(decoded):
    share, wrong = ranked(decoded, lambda clip: clip)
    assert share >= 0.97
    assert all(strength < 0.35 for strength in wrong)


def test_chosen_scores_above_rejected_at_half_the_size(decoded):
    assert ranked(decoded, halved)[0] >= 0.95


def test_blurred_and_noisy_clips_are_ranked(decoded):
    rng = np.random.default_rng(0)
    assert ranked(decoded, lambda clip: degraded(halved(clip), rng, 12))[0] >= 0.93


@pytest.mark.parametrize("side", [64, 32])
@pytest.mark.parametrize("defect", DEFECTS)
def test_reward_falls_with_every_defects_strength(defect, side):
    means = []
    for strength in (0.0, 0.15, 0.3, 0.5, 0.75, 1.0):
        pairs = [example(3, index, defect=defect, strength=strength) for index in range(16)]
        means.append(np.mean([true_reward(render(pair.rejected, side), pair.prompt).total for pair in pairs]))
    assert np.all(np.diff(means) < 0)
    assert means[0] > 0.9 and means[-1] < 0.65


def test_each_part_sees_its_own_defects():
    parts = {"jump": "smoothness", "flicker": "constancy", "tear": "constancy"}
    parts |= dict.fromkeys(("colour", "shape", "direction"), "obedience")
    for defect, part in parts.items():
        loss = defaultdict(float)
        for index in range(12):
            pair = example(4, index, defect=defect, strength=0.8)
            good, bad = (true_reward(render(scene), pair.prompt) for scene in (pair.chosen, pair.rejected))
            for name in ("smoothness", "constancy", "obedience"):
                loss[name] += getattr(good, name) - getattr(bad, name)
        assert loss[part] / 12 > 0.1
        # Torn bands also carry the centre with them; every other defect costs most where it belongs.
        assert defect == "tear" or max(loss, key=loss.get) == part


@pytest.mark.parametrize("side", [64, 32])
def test_the_prompt_decides(side):
    """Of all prompts of one size word, none suits a clip better than its own."""
    for index in range(6):
        pair = example(5, index)
        clip, (size, *words) = render(pair.chosen, side), prompt_words(pair.prompt)
        own = true_reward(clip, pair.prompt).total
        for place, names in enumerate((COLOURS, SHAPES, DIRECTIONS)):
            for name in set(names) - {words[place]}:
                colour, shape, direction = words[:place] + [name] + words[place + 1 :]
                assert true_reward(clip, f"a {size} {colour} {shape} moving {direction}").total < 0.8 * own


@pytest.mark.parametrize("side", [64, 32])
def test_clips_without_an_object_score_nothing(side):
    rng = np.random.default_rng(0)
    shape = (12, side, side, 3)
    for clip in (
        np.zeros(shape),
        np.full(shape, 255),
        rng.integers(0, 256, shape),
        np.broadcast_to(rng.integers(0, 256, shape[1:]), shape),
        rng.normal(30, 5, shape),
    ):
        assert true_reward(clip.clip(0, 255).astype(np.uint8), PROMPT).total < 0.05


def test_reward_fades_as_noise_takes_over():
    rng = np.random.default_rng(0)
    scores = []
    for share in (1.0, 0.85, 0.7, 0.55, 0.4):
        clips = [(example(6, index).prompt, render(example(6, index).chosen, 32)) for index in range(12)]
        mixed = [(p, share * clip + (1 - share) * rng.normal(90, 60, clip.shape)) for p, clip in clips]
        scores.append(np.mean([true_reward(c.clip(0, 255).astype(np.uint8), p).total for p, c in mixed]))
    assert np.all(np.diff(scores) < 0) and 0.1 < scores[3] < 0.8


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    frames=st.integers(3, 16),
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    low=st.integers(0, 255),
)
def test_reward_is_bounded_for_any_clip(seed, frames, height, width, low):
    rng = np.random.default_rng(seed)
    reward = true_reward(rng.integers(low, 256, (frames, height, width, 3), dtype=np.uint8), PROMPT)
    parts = (reward.total, reward.smoothness, reward.constancy, reward.obedience)
    assert all(0 <= part <= 1 for part in parts)
    assert reward.total == pytest.approx(np.prod(parts[1:]) ** (1 / 3))


def test_what_is_no_clip_or_prompt_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        true_reward(np.zeros((12, 32, 32, 3)), PROMPT)
    with pytest.raises(ValueError, match="F >= 3"):
        true_reward(np.zeros((2, 32, 32, 3), np.uint8), PROMPT)
    for prompt in ("a cat", "a red blue circle moving up", "a small large red circle moving up"):
        with pytest.raises(ValueError, match="no toy prompt"):
            true_reward(np.zeros((12, 32, 32, 3), np.uint8), prompt)
