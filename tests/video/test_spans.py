"""Which part of longer clips is taken, and that it is the same of both, in every command."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.config.read import load_config
from pgdpo.data.clips import Sampling, planned, views_said
from pgdpo.data.preparing.prepare import prepare
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.rows.schema import cut_labels
from pgdpo.video import VideoInfo, read_video, write_video
from tests.worlds import run_pgdpo, write_config


def info(frames: int, fps: float, times=None) -> VideoInfo:
    steps = times or [Fraction(n) / Fraction(fps).limit_denominator(1001) for n in range(frames)]
    return VideoInfo(32, 32, fps, frames, "h264", stored=(32, 32), times=tuple(steps))


@settings(max_examples=200, deadline=None)
@given(
    own=st.sampled_from([8, 10, 15, 16, 24000 / 1001, 24, 25, 30000 / 1001, 30, 50, 60, 120]),
    fps=st.sampled_from([8, 16, 24, 25, None]),
    lengths=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    wanted=st.integers(1, 80),
    clip=st.sampled_from(["first", "middle", "random", "segments:1", "segments:3"]),
    name=st.text("abc", min_size=1),
)
def test_a_plan_takes_the_nearest_frames_of_one_span(own, fps, lengths, wanted, clip, name):
    clips = {"chosen": info(lengths[0], own), "rejected": info(lengths[1], own)}
    name = f"{name}~2" if clip == "segments:3" else name
    sampling = Sampling(fps, clip)
    try:
        plan = planned(name, clips, (wanted, 16, 16), sampling)
    except InputError as error:
        slow = fps is not None and own < fps * 0.998 and wanted > 1
        short = min(lengths) < wanted if fps is None else (min(lengths) - 0.5) / own * fps < wanted - 1 + 1e-9
        few = clip == "segments:3"
        assert slow or short or few, error
        return
    rate = own if fps is None or abs(own - fps) < 0.002 * own else fps
    for each in clips.values():
        numbers = plan.numbers(each)
        assert len(numbers) == wanted and numbers[-1] < each.num_frames
        for tick, number in enumerate(numbers, start=plan.first):
            assert abs(number / own - tick / rate) <= 0.5 / own + 1e-6
    assert plan.numbers(clips["chosen"]) == plan.numbers(clips["rejected"])
    plain = plan.numbers(clips["chosen"]) == list(range(wanted))
    assert (plan.view == "") == plain


def test_every_place_of_a_random_span_is_reached():
    sampling = Sampling(None, "random")
    firsts = [sampling.first(f"pair{number}", 10, 6) for number in range(400)]
    assert sorted(set(firsts)) == [0, 1, 2, 3, 4] and max(np.bincount(firsts)) < 120
    assert firsts == [sampling.first(f"pair{number}", 10, 6) for number in range(400)]


def test_what_was_done_is_said_by_kind():
    seen = [
        (60.0, "16 a second from 0 s (0a)"),
        (60.0, "16 a second from 1.5 s (1b), pq"),
        (16.0, ""),
        (60.0, "16 a second from 2 s (2c)"),
    ]
    assert list(views_said(seen)) == [
        "2 pairs of 60 frames a second: taken at 16 a second",
        "1 pairs of 60 frames a second: taken at 16 a second, pq",
        "1 pairs of 16 frames a second: as they are",
    ]


def test_labels_by_time_are_those_of_the_span():
    pieces = [{"start": n, "end": n + 1, "preference": p} for n, p in enumerate((1, 0, 0.5, 1))]
    row = {"segments": pieces, "segment_labels": [1, -1, 0, 1]}
    assert cut_labels(row, [0, 4])["segment_labels"] == [1, -1, 0, 1]
    assert cut_labels(row, [0.9, 3.2])["segment_labels"] == [-1, 0]
    assert cut_labels(row, [2.1, 2.3])["segment_labels"] == [0]
    assert cut_labels({**row, "segment_labels": [1, 1]}, [0, 1])["segment_labels"] == [1, 1]  # the row's own


@pytest.fixture
def world(tmp_path, tiny_wan):
    """Pairs of 16 frames a second, 32 and 24 of them, whose grey tells the frame; a configuration for 8 frames at 8."""
    for name, count in (("a", 32), ("b", 24)):
        frames = np.stack([np.full((16, 16, 3), 20 + 6 * n, np.uint8) for n in range(count)])
        write_video(tmp_path / f"{name}.mp4", frames, 16)
    row = {"id": "p", "prompt": "x", "chosen": "a.mp4", "rejected": "b.mp4"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    data = {"train": str(tmp_path / "rows.jsonl"), "held_out": None, "num_frames": 8}
    return write_config(tmp_path / "config.yaml", tmp_path / "out", tiny_wan, data=data)


def shown(world, *overrides) -> tuple[dict, list[list[float]]]:
    """(index, per pair the frames' numbers that its latents show, chosen and rejected)."""
    config = load_config(world, list(overrides))
    family = open_family(config.model)
    encoders = family.load_encoders("cpu")
    seen = []
    encode = type(encoders).encode_video

    class Watching(type(encoders)):
        def encode_video(self, frames):
            seen.append([round((float(frame.mean()) - 20) / 6) for frame in frames])
            return encode(self, frames)

    done = prepare(config.prepared_dir / "train", config.data, family, Watching())
    return done.index, seen


def test_first_middle_and_segments_of_both_clips(world, capsys):
    index, seen = shown(world)
    assert seen == [[0, 2, 4, 6, 8, 10, 12, 14]] * 2 and index["pairs"][0]["span"] == [0, 1]
    said = capsys.readouterr().out
    assert "1 pairs of 16 frames a second: taken at 8 a second" in said and "clips of two lengths" in said
    index, seen = shown(world, "data.clip=middle")
    assert seen == [[4, 6, 8, 10, 12, 14, 16, 18]] * 2 and index["pairs"][0]["span"] == [0.25, 1.25]
    index, seen = shown(world, "data.clip=segments:3")
    assert [row["id"] for row in index["pairs"]] == ["p~1", "p~2", "p~3"]
    assert [frames[0] for frames in seen] == [0, 0, 8, 8]  # the middle one is there already
    assert [row["span"] for row in index["pairs"]] == [[0, 1], [0.25, 1.25], [0.5, 1.5]]
    assert shown(world, "data.clip=segments:3")[1] == []


def test_another_rate_or_span_is_no_longer_what_was_prepared(world):
    run_pgdpo("prepare", str(world))
    run_pgdpo("train", str(world), "train.steps=1", "train.global_batch_groups=2")
    for change in ("data.fps=16", "data.clip=middle", "data.upsample=true"):
        with pytest.raises((InputError, SystemExit)):
            run_pgdpo("train", str(world), change, "name=other")


@pytest.mark.parametrize(
    "change", ["data.fps=0", "data.fps=fast", "data.clip=last", "data.clip=segments:0", "data.fps=true"]
)
def test_settings_that_say_nothing_are_refused(world, change):
    with pytest.raises(InputError, match=change.split("=")[0]):
        load_config(world, [change])


def test_slow_clips_are_refused_unless_frames_may_be_repeated(world):
    with pytest.raises(InputError, match="16 frames a second and 24 are asked for, which would repeat"):
        shown(world, "data.fps=24")
    index, seen = shown(world, "data.fps=24", "data.upsample=true")
    assert seen[0] == [0, 1, 1, 2, 3, 3, 4, 5]
    assert len(read_video(world.parent / "a.mp4")) == 32


@settings(max_examples=100, deadline=None)
@given(
    gaps=st.lists(st.sampled_from([10, 20, 40, 100]), min_size=8, max_size=40),
    ways=st.tuples(
        *[st.tuples(st.sampled_from([None, 8, 25, 30]), st.sampled_from(["first", "middle"]))] * 2
    ),
)
def test_what_is_seen_alike_is_the_same_frames(gaps, ways):
    """Of clips of variable rate: frames that are taken one by one are not those at a rate, though both begin alike."""
    times = np.cumsum([0, *gaps])
    clip_of = info(len(times), 25, [Fraction(int(time), 1000) for time in times])
    clips = {"chosen": clip_of, "rejected": clip_of}
    plans = [
        planned("p", clips, (6, 16, 16), Sampling(fps, clip, upsample=True))
        for fps, clip in ways
        if clip_of.frames_at(fps) >= 6
    ]
    for one in plans:
        for other in plans:
            assert one.view != other.view or one.numbers(clip_of) == other.numbers(clip_of)
