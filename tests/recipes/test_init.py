"""`pgdpo init` keeps a configuration's comments, puts in what it is told, and fits it to the GPUs."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.checking import run_check
from pgdpo.config.read import load_config, load_study, shipped_configs
from pgdpo.data.buckets import share_shown
from pgdpo.data.clips import Sampling, bucket_of, planned
from pgdpo.messages.errors import InputError
from pgdpo.recipes.propose import FAIR, MOST_BUCKETS, Form, Survey, form_of, propose
from pgdpo.recipes.write import models, next_commands, set_key, share_or_manifest, shipped_like
from pgdpo.video import VideoInfo, write_video
from tests.models.families import FAMILIES
from tests.worlds import run_pgdpo


@pytest.fixture(scope="module")
def whole_wan(tmp_path_factory):
    """A tiny pipeline whose positions reach as far as 480p needs."""
    folder = FAMILIES["wan"].save(tmp_path_factory.mktemp("wan"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_max_seq_len": 1024}))
    return folder


@pytest.fixture
def pairs(tmp_path):
    """`pairs(name, kinds)`: a manifest of real clips, so many pairs of each (number, width, height, fps, frames)."""

    def write(name, kinds, *more):
        (tmp_path / "clips").mkdir(exist_ok=True)
        rows = []
        for kind, (count, width, height, fps, frames) in enumerate(kinds):
            for number in range(count):
                row = {"id": f"{name}-{kind}-{number}", "prompt": "a red circle"}
                for level, side in enumerate(("chosen", "rejected")):
                    row[side] = f"clips/{row['id']}-{side}.mp4"
                    pixels = np.full((frames, height, width, 3), 50 * level + 10 * number + kind, np.uint8)
                    write_video(tmp_path / row[side], pixels, fps)
                rows.append(row)
        manifest = tmp_path / f"{name}.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *more)))
        return manifest

    return write


def test_every_model_has_a_configuration_that_can_be_begun(tmp_path):
    assert {"wan21_1.3b", "hunyuan_video", "cogvideox_5b", "ltx_video"} <= set(models())
    assert not {"quickstart", "study", "study_selection"} & set(models())


def test_comments_stay_and_what_is_told_is_put_in(tmp_path, tiny_wan, pairs):
    out, manifest = tmp_path / "mine.yaml", pairs("own", [(1, 96, 64, 16, 21)])
    run_pgdpo("init", "wan21_1.3b", out, "--path", tiny_wan, "--train", manifest, "--gpu", "H100")
    text = out.read_text()
    assert "# 4k + 1" in text and "`pgdpo objectives` lists the others" in text
    config = load_config(out)
    assert config.data.train == str(manifest) and config.model.path == str(tiny_wan)
    assert config.data.held_out is None and config.data.sizes == [(21, 64, 96)]
    assert config.output_dir.name == "mine"
    with pytest.raises(
        InputError, match="there is one already: name another file, or replace it with --force"
    ):
        run_pgdpo("init", "wan21_1.3b", out)
    run_pgdpo("init", "wan21_1.3b", out, "--force", "--path", tiny_wan)


@pytest.mark.usefixtures("traced_once")
def test_a_run_that_does_not_fit_is_changed_until_it_does(tmp_path, whole_wan):
    """A made-up GPU that holds the tiny model's step only with less kept or in parts."""
    small, plain = tmp_path / "small.yaml", tmp_path / "plain.yaml"
    run_pgdpo("init", "wan21_1.3b", plain, "--path", whole_wan, "--gpus", 2)
    from pgdpo.planning.hardware import machine
    from pgdpo.planning.plan import Planner

    config = load_config(plain)
    on = machine(gpus=2, nodes=1, name="H100", memory_gb=None, mfu=0.35, disk_gb_per_s=1.0)
    peak = Planner(config).plan(config, on).memory.peak
    share = on.usable / on.memory
    run_pgdpo(
        "init",
        "wan21_1.3b",
        small,
        "--path",
        whole_wan,
        "--gpus",
        2,
        "--gpu-memory",
        0.9 * peak / share / 1e9,
    )
    changed = load_config(small)
    assert changed.model_dump(exclude={"output_dir"}) != config.model_dump(exclude={"output_dir"})
    tight = machine(
        gpus=2, nodes=1, name="H100", memory_gb=0.9 * peak / share / 1e9, mfu=0.35, disk_gb_per_s=1.0
    )
    assert Planner(changed).plan(changed, tight).fits


@pytest.mark.parametrize(("gpus", "batch"), [(7, 63), (48, 48), (100, 100), (8, 64)])
def test_gpus_that_do_not_divide_the_batch_change_it(tmp_path, monkeypatch, capsys, gpus, batch):
    """Whether or not the model is there to be planned."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run_pgdpo("init", "wan21_1.3b", tmp_path / "x.yaml", "--path", tmp_path / "elsewhere", "--gpus", gpus)
    assert load_config(tmp_path / "x.yaml").train.global_batch_groups == batch
    assert (f"train.global_batch_groups: {batch}" in capsys.readouterr().out) == (batch != 64)


@pytest.mark.parametrize(
    ("changes", "where", "expected"),
    [
        ([], (1, 1), ["pgdpo check x.yaml", "pgdpo prepare x.yaml", "pgdpo train x.yaml", "pgdpo evaluate x.yaml"]),
        (["data.held_out=null", "train.reference=cached"], (8, 1),
         ["pgdpo check x.yaml", "pgdpo prepare x.yaml", "torchrun --nproc-per-node 8 -m pgdpo reference x.yaml",
          "torchrun --nproc-per-node 8 -m pgdpo train x.yaml"]),
        (["data.held_out=null", "objective={name: sft}", "train.reference=cached"], (16, 2),
         ["pgdpo check x.yaml", "pgdpo prepare x.yaml",
          "torchrun --nnodes 2 --node-rank NODE --master-addr FIRST_NODE --nproc-per-node 8 -m pgdpo train "
          "x.yaml"]),
    ],
)  # fmt: skip
def test_what_comes_next_is_what_the_configuration_needs(changes, where, expected):
    assert next_commands(load_config("wan21_14b.yaml", changes), Path("x.yaml"), *where) == expected


def test_sizes_that_the_model_has_no_positions_for_are_refused(tmp_path, saved):
    short = saved(FAMILIES["wan"].save)  # 32 positions on a side: 512 pixels
    with pytest.raises(InputError, match="data.width is 832: 52 positions, .* at most 512"):
        run_pgdpo("init", "wan21_1.3b", tmp_path / "x.yaml", "--path", short)
    assert not (tmp_path / "x.yaml").exists()


def test_an_unknown_model_is_refused_with_the_list(tmp_path):
    with pytest.raises(InputError, match="MODEL is 'wan3'; there are cogvideox15_5b, "):
        run_pgdpo("init", "wan3", tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.steps", 5), ("train.zero_stage", 3), ("train.offload_optimizer", "cpu"), ("name", "a: b"),
     ("make.seed", 4), ("data.train", "x # y.jsonl")],
)  # fmt: skip
def test_one_key_is_set_and_the_rest_stays(key, value):
    text = shipped_configs()["wan21_1.3b.yaml"].read_text()
    before, after = yaml.safe_load(text), yaml.safe_load(set_key(text, key, value))
    *section, name = key.split(".")
    node = before.setdefault(section[0], {}) if section else before
    node[name] = value
    assert after == before
    assert set_key(text, key, value).count("#") >= text.count("#")


def test_a_file_of_a_shipped_name_hides_nothing(tmp_path, monkeypatch, tiny_wan):
    """A first `init` under the shipped name, then another; each from what ships, not from what lies in the folder."""
    monkeypatch.chdir(tmp_path)
    known = models()
    for model in ("wan21_1.3b", "wan21_14b"):
        run_pgdpo("init", model, f"{model}.yaml", "--path", tiny_wan, "--gpu", "H100")
    assert models() == known
    (tmp_path / "wan21_1.3b.yaml").write_text("output_dir: mine\n")
    run_pgdpo("init", "wan21_1.3b", "again.yaml", "--path", tiny_wan, "--gpu", "H100")
    assert "`pgdpo objectives` lists the others" in (tmp_path / "again.yaml").read_text()


def test_a_shipped_study_starts_from_the_shipped_base(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("not: mine\n")
    _, runs = load_study("study.yaml")
    assert runs["dpo"][0].model.path == "toy"
    with pytest.raises(InputError, match="unknown key `not`"):
        load_config("quickstart.yaml")  # a file that is named is the one that is there
    assert "not the one that ships" in " ".join(capsys.readouterr().out.split())
    own = tmp_path / "own"
    own.mkdir()
    (own / "study.yaml").write_text("output_dir: x\nbase: base.yaml\nseeds: [0]\nobjectives: {dpo: {}}\n")
    (own / "base.yaml").write_text(
        shipped_configs()["quickstart.yaml"].read_text().replace("steps:", "steps: 7 #", 1)
    )
    _, runs = load_study(own / "study.yaml")
    assert runs["dpo"][0].train.steps == 7


def test_quickstart_runs_what_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("not: mine\n")
    started = []
    monkeypatch.setattr("pgdpo.cli.quickstart.whole_way", started.append)
    run_pgdpo("quickstart")
    assert started[0].model.path == "toy"
    with pytest.raises(InputError, match="unknown key `not`"):
        run_pgdpo("quickstart", "--config", "quickstart.yaml")


CLIPS = [(8, 96, 64, 16, 24), (4, 64, 96, 32, 60), (1, 100, 66, 25, 90)]


@pytest.mark.usefixtures("traced_once")
def test_what_is_proposed_for_ones_clips_passes_check(tmp_path, whole_wan, pairs, capsys, monkeypatch):
    out = tmp_path / "own.yaml"
    train, held_out = pairs("train", CLIPS), pairs("held", [(2, 96, 64, 16, 24)])
    run_pgdpo("init", "wan21_1.3b", out, "--path", whole_wan, "--train", train, "--held-out", held_out)
    said = capsys.readouterr().out
    config = load_config(out)
    assert config.data.buckets == [(21, 64, 96), (29, 96, 64)]
    assert "8 pairs of 96x64, 16 frames a second, 1.5 s, SDR" not in said  # those held out are counted too
    assert "10 pairs of 96x64, 16 frames a second, 1.5 s, SDR" in said
    assert "4 pairs of 64x96, 32 frames a second, 1.88 s, SDR" in said and "15 of 15 pairs" in said
    assert "11 pairs go to 21x64x96" in said and "refused" not in said and "enlarged" not in said
    findings = run_check(str(out), ["train.global_batch_groups=4", "evaluate.num_prompts=2"])
    assert findings.exit_code == 0 and not findings.problems, findings.problems


def test_a_broken_clip_is_counted_and_a_broken_row_ends_it(tmp_path, tiny_wan, pairs, capsys):
    out = tmp_path / "own.yaml"
    (tmp_path / "page.mp4").write_text("<html>")
    rows = [
        {"id": "page", "prompt": "a", "chosen": "page.mp4", "rejected": "page.mp4"},
        {
            "id": "far",
            "prompt": "a",
            "chosen": "https://x.invalid/a.mp4",
            "rejected": "https://x.invalid/b.mp4",
        },
    ]
    manifest = pairs("some", [(2, 64, 64, 16, 9)], *rows)
    run_pgdpo("init", "wan21_1.3b", out, "--path", tiny_wan, "--train", manifest)
    said = capsys.readouterr().out
    assert "2 of 4 pairs were looked at; 1 have a remote clip, which is not fetched" in said
    assert "1 pairs cannot be taken, first: pair `page`, chosen: " in said
    assert load_config(out).data.sizes == [(9, 64, 64)]
    out.unlink()
    manifest = pairs("bad", [(1, 64, 64, 16, 9)], {"id": "x", "prompt": "a", "chosen": "gone.mp4"})
    with pytest.raises(InputError, match=r"bad.jsonl:2: key `rejected` is missing.*\n.*no file at"):
        run_pgdpo("init", "wan21_1.3b", out, "--path", tiny_wan, "--train", manifest)
    with pytest.raises(InputError, match="--held-out or --media-root is given without --train"):
        run_pgdpo("init", "wan21_1.3b", out, "--held-out", "0.1")
    assert not out.exists()
    assert share_or_manifest("0.05") == {"share": 0.05} and share_or_manifest("a.jsonl") == "a.jsonl"


def info(width, height, fps, frames):
    times = tuple(number / Fraction(fps) for number in range(frames))
    return VideoInfo(width, height, fps, frames, "h264", times=times)


def survey(*kinds):
    """As `pairs`, without files."""
    named = [info(*kind) for count, *kind in kinds for _ in range(count)]
    return Survey(
        {str(place): {"chosen": each, "rejected": each} for place, each in enumerate(named)}, of=len(named)
    )


WAN = Form(16, 4)


def test_clips_like_the_models_own_keep_its_size():
    """HD at 25 a second, upright and lying, is what 480p was made of; the model's frames are the most."""
    config = load_config("wan21_1.3b.yaml")
    found = propose(survey((30, 1920, 1080, 25, 250), (2, 848, 480, 16, 81)), config, WAN)
    assert found.settings == {"data.num_frames": 81, "data.height": 480, "data.width": 832}
    assert any("data.clip takes others" in note for note in found.notes)
    found = propose(survey((30, 1920, 1080, 25, 250), (20, 1080, 1920, 25, 75)), config, WAN)
    assert found.settings["data.buckets"] == [[81, 480, 832], [45, 832, 480]]


def test_a_bucket_for_small_clips_takes_none_from_large_ones():
    """By its aspect ratio alone, 240x320 would get the clips of 768x576 too."""
    kinds = (20, 1920, 1080, 25, 250), (6, 768, 576, 25, 250), (4, 320, 240, 25, 250)
    found = propose(survey(*kinds), load_config("wan21_1.3b.yaml"), WAN)
    assert found.settings["data.buckets"] == [[81, 480, 832], [81, 560, 736]]  # most pairs first
    assert any(note.startswith("4 pairs are smaller") for note in found.notes)


def test_slow_clips_are_shown_at_their_rate_only_if_all_have_it():
    wan, ltx = load_config("wan21_1.3b.yaml"), load_config("ltx_video.yaml")
    assert propose(survey((9, 832, 480, 12, 90)), wan, WAN).settings["data.fps"] == 12
    assert propose(survey((9, 704, 512, 24, 99)), ltx, Form(32, 8)).settings["model.frame_rate"] == 24
    mixed = propose(survey((9, 832, 480, 16, 90), (3, 832, 480, 8, 90)), wan, WAN)
    assert "data.fps" not in mixed.settings and mixed.settings["data.num_frames"] == 81
    assert any(
        "3 of 12 pairs are slower than the 16" in note and "data.fps=8" in note for note in mixed.notes
    )
    assert any("3 pairs fit none and would be refused" in note for note in mixed.notes)


@pytest.mark.parametrize(
    ("model", "form"),
    [("wan21_1.3b", (16, 4)), ("wan22_ti2v_5b", (32, 4)), ("wan21_i2v_14b", (16, 4)), ("cogvideox_2b", (16, 8)),
     ("cogvideox15_5b", (16, 8)), ("cogvideox15_5b_i2v", (16, 8)),
     ("ltx_video", (32, 8)), ("hunyuan_video", (16, 4))],
)  # fmt: skip
def test_the_form_is_what_the_family_takes(model, form):
    """As the README's table has it."""
    config = load_config(f"{model}.yaml")
    assert form_of(config, config) == Form(*form)


def test_a_model_of_one_size_gets_that_size():
    """Learned positions, whatever the clips are like."""
    config = load_config("cogvideox_5b_i2v.yaml")
    form = form_of(config, config)
    assert form == Form(16, 8, (49, 480, 720))
    found = propose(survey((9, 832, 480, 16, 90), (9, 720, 1280, 16, 200)), config, form)
    assert (
        found.settings["data.num_frames"],
        found.settings["data.height"],
        found.settings["data.width"],
    ) == form.only
    assert "data.buckets" not in found.settings


def fate(name, pair, sizes, sampling):
    """The bucket that `prepare` puts a pair into; None where it refuses it."""
    try:
        place = bucket_of(name, pair, sizes, sampling)
        planned(name, pair, sizes[place], sampling)
        return place
    except InputError:
        return None


KIND = st.tuples(
    st.integers(1, 20), st.integers(20, 2500), st.integers(20, 2500), st.sampled_from([8, 16, 23.976, 30, 60]),
    st.integers(5, 300),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.lists(KIND, min_size=1, max_size=6), st.sampled_from([WAN, Form(32, 8)]))
def test_sizes_have_the_models_form_and_what_is_said_is_what_happens(kinds, form):
    config, clips = load_config("wan21_1.3b.yaml"), survey(*kinds)
    found = propose(clips, config, form)
    data = config.data.model_copy(
        update={key.removeprefix("data."): value for key, value in found.settings.items()}
    )
    sampling = Sampling.of(data, data.fps or config.fps)
    fates = [fate(name, pair, data.sizes, sampling) for name, pair in clips.pairs.items()]
    refused = fates.count(None)
    assert any(note.startswith(f"{refused} pairs fit none") for note in found.notes) == (refused > 0) or (
        "data.num_frames" not in found.settings  # none is fast enough
    )
    if "data.num_frames" not in found.settings:
        return
    assert 1 <= len(data.sizes) <= MOST_BUCKETS
    for frames, height, width in data.sizes:
        assert frames % form.temporal == 1 and not height % form.spatial and not width % form.spatial
        assert frames <= 81 and height * width <= 1.05 * 480 * 832
    fast = sum(pair["chosen"].fps >= 0.998 * sampling.fps for pair in clips.pairs.values())
    if len(data.sizes) > 1:
        for place, size in enumerate(data.sizes):
            members = [
                pair for found_in, pair in zip(fates, clips.pairs.values(), strict=True) if found_in == place
            ]
            assert len(members) >= FAIR * fast - 1
            assert all(share_shown(size, pair["chosen"]) >= 0.5 for pair in members)


def test_a_folder_or_hub_id_takes_the_configuration_that_it_is_most_like(tmp_path, saved, capsys):
    """Of each published model one of its own; of a tiny one of each kind, one of its family."""
    for name in models():
        path = load_config(f"{name}.yaml").model.path
        assert load_config(f"{shipped_like(path)}.yaml").model.path == path
    for kind in FAMILIES.values():
        assert load_config(f"{shipped_like(str(saved(kind.save)))}.yaml").model.family == kind.family
    run_pgdpo("init", "zai-org/CogVideoX-5b", tmp_path / "x.yaml")
    said = " ".join(capsys.readouterr().out.split())
    assert "made of cogvideox_5b.yaml; licence of zai-org/CogVideoX-5b: cogvideox-license: " in said
    assert load_config(tmp_path / "x.yaml").model.path == "zai-org/CogVideoX-5b"


def test_a_neighbours_folder_begins_no_run(tmp_path):
    folder = tmp_path / "ltx2"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "LTX2ConditionPipeline"}')
    for words in ([folder], ["ltx_video", "--path", folder]):
        model, *path = words
        with pytest.raises(InputError, match="it is LTX-2"):
            run_pgdpo("init", model, tmp_path / "x.yaml", *path)
    assert not (tmp_path / "x.yaml").exists()
