"""Sound from a row's clips to a batch, by an LTX-2 pipeline of real classes."""

import json
import shutil

import numpy as np
import pytest
import torch

from pgdpo.checking import run_check
from pgdpo.config.read import load_config
from pgdpo.data.curation.apply import _statistics
from pgdpo.data.prepared import PreparedPairs
from pgdpo.data.visits.loading import collate
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.encoders.ltx2 import LTX2Encoders
from pgdpo.training.metrics import read_metrics
from pgdpo.training.opening import open_pairs
from pgdpo.video import Sound, write_video
from tests.models.tiny_ltx2 import save_tiny_ltx2
from tests.video.sounding import FPS, beep, write_clip
from tests.worlds import losses, run_pgdpo, stored, write_config

pytestmark = pytest.mark.usefixtures("eager_kernels", "undrawn")
FRAMES, SECONDS = 9, 9 / FPS
AT = {"chosen": 0.32, "rejected": 0.36}  # seconds of the beeps
KINDS = {"cd": (44100, 1, "aac", "mp4"), "own": (16000, 2, "pcm_s16le", "mov"), "mute": None}


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounding")
    save_tiny_ltx2(folder / "model")
    (folder / "clips").mkdir()
    for name, kind in KINDS.items():
        for side, at in AT.items():
            if kind is None:
                write_video(folder / f"clips/{name}-{side}.mp4", np.zeros((24, 48, 64, 3), np.uint8), FPS)
                continue
            rate, channels, codec, ending = kind
            path = folder / f"clips/{name}-{side}.{ending}"
            write_clip(path, beep(rate, 1.0, at, channels), rate, codec=codec, frames=24)
    return folder


def row_of(name: str, **others: str) -> dict:
    ending = "mp4" if KINDS[name] is None else KINDS[name][3]
    clips = {side: f"clips/{name}-{side}.{ending}" for side in AT}
    return {"id": name, "prompt": f"word {name}", **clips, **others}


@pytest.fixture
def world(made_once, tmp_path):
    """`world(rows, **data)`: the configuration of a manifest of these clips, of which the first 9 frames are taken."""
    folder = shutil.copytree(made_once, tmp_path / "world", copy_function=shutil.copy2)

    def write(rows: list[dict], **data):
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {
            "train": str(folder / "train.jsonl"),
            "held_out": None,
            "num_frames": 9,
            "height": 64,
            "width": 64,
            **data,
        }
        return write_config(
            folder / "config.yaml",
            folder / "out",
            folder / "model",
            data=data,
            model={"family": "ltx2", "encoders": "pipeline"},
            evaluate={"reward": None, "fps": None},
        )

    return write


@pytest.fixture
def counted(monkeypatch):
    """Counts what is encoded from here on."""
    counts = dict.fromkeys(("encode_video", "encode_audio"), 0)
    for name in counts:
        whole = getattr(LTX2Encoders, name)

        def encode(self, *args, name=name, whole=whole):
            counts[name] += 1
            return whole(self, *args)

        monkeypatch.setattr(LTX2Encoders, name, encode)
    return counts


def pairs(config) -> PreparedPairs:
    return PreparedPairs(config.parent / "out/prepared/train")


def refused(config, *overrides) -> str:
    with pytest.raises(InputError) as caught:
        run_pgdpo("prepare", config, *overrides)
    return str(caught.value)


@pytest.mark.parametrize("clip", ["first", "middle"])
def test_what_stands_in_a_pair_is_the_sound_of_the_frames_that_are_taken(world, clip):
    config = world([row_of("own")], clip=clip)
    run_pgdpo("prepare", config)
    data = pairs(config)
    family = open_family(load_config(config).model)
    encoders = family.load_encoders(torch.device("cpu"))
    first = 0 if clip == "first" else (24 - FRAMES) // 2
    begins = round(first / FPS * 16000)
    for place, at in enumerate(AT.values()):
        samples = (beep(16000, 1.0, at, 2) * 32768).round() / 32768
        taken = samples[:, begins : begins + round(SECONDS * 16000)].astype(np.float32)
        found = data[0, 0]["samples"][place]
        wanted = encoders.encode_audio(Sound(taken, 16000), FRAMES)
        assert found["audio"].shape == family.stream_shapes(FRAMES, 64, 64)["audio"] == wanted.shape
        torch.testing.assert_close(found["audio"], wanted, rtol=1e-3, atol=2e-3)
        assert found["video"].shape == family.latent_shape(FRAMES, 64, 64)
    assert not data[0, 0]["samples"][0]["audio"].equal(data[0, 0]["samples"][1]["audio"])


def test_pairs_with_sound_and_without_are_batches_of_their_own(world, capfd):
    config = world([row_of("mute"), row_of("cd"), row_of("own")])
    run_pgdpo("prepare", config)
    told = capfd.readouterr().out
    assert "sound of 1 pairs: 44,100 Hz mono made 16,000 Hz stereo" in told
    assert "sound of 1 pairs: 16,000 Hz stereo as it is" in told
    assert "1 of 3 pairs have no sound: their audio part doesn't count" in told
    data = pairs(config)
    assert data.streams == ("video", "audio") and data.buckets == [[1, 2], [0]]
    assert [row["sound"] for row in data.rows] == [False, True, True]
    shape = data.latent_shape
    assert data.stream_shapes == [{"video": shape, "audio": (2, 9, 2)}, {"video": shape}]
    batch = collate([data[1, 0], data[2, 0]])
    assert {name: tensor.shape for name, tensor in batch["latents"].items()} == {
        "video": (4, *shape),
        "audio": (4, 2, 9, 2),
    }
    assert batch["latents"]["audio"][2].equal(data[1, 0]["samples"][1]["audio"])  # member by member
    silent = collate([data[0, 0]])
    assert silent["latents"].keys() == {"video"}
    data.rows[2]["sha256"] = "0" * 64
    with pytest.raises(InputError, match="another SHA-256"):
        data[2, 0]


def test_ranks_that_share_weights_take_no_groups_of_both_kinds(world):
    config = world([row_of("cd"), row_of("mute")])
    run_pgdpo("prepare", config)
    with pytest.raises(InputError) as caught:
        run_pgdpo("train", config, "train.zero_stage=3", "train.global_batch_groups=2")
    assert "1 of 2 rows have no sound, the first is `mute`, and train.zero_stage is 3" in str(caught.value)
    assert "take zero_stage 2" in str(caught.value)
    found = run_check(str(config), ["train.zero_stage=3", "train.global_batch_groups=2"])
    assert any("train.zero_stage is 3" in problem.what for problem in found.problems)
    run_pgdpo("prepare", world([row_of("cd")]))
    open_pairs(load_config(config, ["train.zero_stage=3"]), "train")


def test_turning_the_sound_on_and_off_encodes_what_it_must(world, counted, capfd):
    config = world([row_of("cd"), row_of("own"), row_of("mute")])
    run_pgdpo("prepare", config, "model.audio=false")
    assert counted == {"encode_video": 6, "encode_audio": 0}
    alone = pairs(config)
    assert alone.streams == ("video",) and "sound" not in alone.rows[0]
    assert isinstance(alone[0, 0]["samples"][0], torch.Tensor)
    picture = [alone[index, 0]["samples"] for index in range(3)]
    run_pgdpo("prepare", config)
    assert counted == {"encode_video": 6, "encode_audio": 4}
    both = pairs(config)
    for index in range(3):
        for was, now in zip(picture[index], both[index, 0]["samples"], strict=True):
            assert now["video"].equal(was)
    fingerprint, sound = both.fingerprint, both[0, 0]["samples"][1]["audio"]
    run_pgdpo("prepare", config)
    assert counted == {"encode_video": 6, "encode_audio": 4}
    capfd.readouterr()
    run_pgdpo("prepare", world([row_of("cd"), row_of("mute")]))  # one row less: another shard
    assert counted == {"encode_video": 6, "encode_audio": 4}
    assert "1 of 2 pairs have no sound" in capfd.readouterr().out
    assert pairs(config)[0, 0]["samples"][1]["audio"].equal(sound)
    run_pgdpo("prepare", world([row_of("cd"), row_of("own"), row_of("mute")]), "model.audio=false")
    assert counted == {"encode_video": 8, "encode_audio": 4}  # of the row that was taken out
    run_pgdpo("prepare", config)
    assert pairs(config).fingerprint == fingerprint


def test_another_part_of_the_clips_has_another_sound(world, counted):
    config = world([row_of("own")], clip="middle")
    run_pgdpo("prepare", config)
    middle = pairs(config)[0, 0]["samples"][0]["audio"]
    run_pgdpo("prepare", world([row_of("own")], clip="first"))
    assert counted["encode_audio"] == 4
    assert not pairs(config)[0, 0]["samples"][0]["audio"].equal(middle)


def test_spans_of_one_clip_are_each_with_their_sound(world):
    config = world([row_of("own")], clip="segments:2")
    run_pgdpo("prepare", config)
    data = pairs(config)
    early, late = (data[index, 0]["samples"][0]["audio"] for index in range(2))
    assert not early.equal(late)


def test_sound_on_one_side_alone_is_refused_unless_it_is_left_out(world):
    config = world([row_of("cd", rejected="clips/mute-rejected.mp4"), row_of("own")])
    message = refused(config)
    assert "pair `cd`: chosen (" in message and "cd-chosen.mp4) has sound and rejected (" in message
    assert "give both clips sound or none" in message and "model.audio: false" in message
    run_pgdpo("prepare", config, "model.audio=false")
    assert len(pairs(config)) == 2


def test_a_track_shorter_than_what_is_taken_is_a_bad_row(world):
    config = world([row_of("own"), row_of("cd")])
    write_clip(config.parent / "clips/cd-chosen.mp4", beep(44100, 0.2, 0.1), 44100, frames=24)
    message = refused(config)
    assert "pair `cd`, chosen: " in message and "its sound ends after 0.2 s" in message
    assert "after 0.375 s" in message


def test_all_samples_of_a_group_have_sound_or_none(world):
    clips = [f"clips/{name}-{side}.mov" for name in ("own",) for side in AT] + ["clips/mute-chosen.mp4"]
    samples = [{"clip": clip, "score": float(place)} for place, clip in enumerate(clips)]
    config = world([{"id": "g", "prompt": "word", "samples": samples}])
    assert "sample 0 (" in refused(config)
    config = world([{"id": "g", "prompt": "word", "samples": samples[:2]}])
    run_pgdpo("prepare", config)
    assert collate([pairs(config)[0, 0]])["latents"]["audio"].shape[0] == 2


def test_sound_that_is_turned_off_behind_prepared_data_is_named(world):
    config = world([row_of("cd")])
    run_pgdpo("prepare", config)
    with pytest.raises(
        InputError, match="model.audio is false, and the clips were prepared with their sound"
    ):
        run_pgdpo("train", config, "model.audio=false")


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["joint", "split"])
def test_ranks_with_sound_and_without_take_the_same_step(world, ranks, batching):
    """One has a pair with sound and the other a silent one in each step: ZeRO's stages 1 and 2 are as good as none."""
    config = world([row_of("cd"), row_of("mute")])
    run_pgdpo("prepare", config)
    train = ["train.global_batch_groups=2", "train.micro_batch_groups=1", "train.learning_rate=1e-2"]
    train += [f"train.group_batching={batching}", "model.adapter.target_modules=[to_q,to_k,to_v]"]
    ranks.train(config, {f"stage{stage}": [*train, f"train.zero_stage={stage}"] for stage in (0, 1, 2)})
    runs = [config.parent / "out" / f"stage{stage}" for stage in (0, 1, 2)]
    (plain, *sharded), losses_of = map(stored, runs), [losses(run.parent, run.name) for run in runs]
    assert all(found == pytest.approx(losses_of[0], rel=1e-5) for found in losses_of)
    assert losses_of[0][-1] != losses_of[0][0]
    norms = [[row["gradient_norm"] for row in read_metrics(run)] for run in runs]
    assert all(found == pytest.approx(norms[0], rel=1e-4) for found in norms)
    heard = [name for name in plain if "audio_attn1" in name and "lora_B" in name]
    assert heard and all(plain[name].abs().max() > 0 for name in heard)
    # As one vector: where a gradient is nearly 0, Adam makes a step of how the sum of its pieces is rounded.
    names = [name for name in plain if name.startswith("transformer_blocks")]
    whole, *others = (torch.cat([run[name].flatten() for name in names]) for run in (plain, *sharded))
    assert all((other - whole).norm() <= 1e-3 * whole.norm() for other in others)


def test_each_part_is_probed_by_its_own_labels(world):
    """A cue of the sound gives its clips away under one picture: a probe of the picture alone would not see it."""
    rows = [row_of("cd"), row_of("own", dimensions={"video": 0.5, "audio": 0}), row_of("mute")]
    config = world(rows)
    run_pgdpo("prepare", config)
    data, out = pairs(config), config.parent / "found.json"
    run_pgdpo("curate", config, "--out", out)
    found = json.loads(out.read_text())
    assert {part: told["pairs"] for part, told in found["probe"].items()} == {"video": 2, "audio": 2}
    assert "audio: linear probe on latent statistics of 2 pairs" in found["verdict"]
    better, worse = _statistics(data)["audio"]
    sounds = [[side["audio"] for side in data[place, 0]["samples"]] for place in range(2)]
    for place, (chosen, rejected) in enumerate((sounds[0], sounds[1][::-1])):
        assert better[place]["mean of channel 0"] == chosen[0].float().mean().item()
        assert worse[place]["detail"] == rejected.float().diff(dim=2).abs().mean().item()
