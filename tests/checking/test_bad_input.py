"""Bad input is one message that names file, key or row, value, what is allowed and what to do; exit code 2."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from pgdpo.config import Config
from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from tests.worlds import launch, run_pgdpo, write_config

pytestmark = pytest.mark.quick


def refused(*arguments) -> str:
    with pytest.raises(InputError) as caught:
        run_pgdpo(*arguments)
    return str(caught.value)


def changed(config_file, change) -> str:
    """The message for a configuration after `change(dict)`."""
    raw = yaml.safe_load(config_file.read_text())
    change(raw)
    config_file.write_text(yaml.safe_dump(raw))
    return refused("train", config_file)


BAD_CONFIGS = [
    (
        "train.stpes=3",
        r"command line: unknown key `train.stpes`: did you mean `steps`\? allowed: .*micro_batch",
    ),
    ("modle.path=x", r"unknown key `modle`: did you mean `model`\?"),
    ("train.steps=0", r"`train.steps` is 0: input should be greater than or equal to 1. Optimizer steps."),
    ("train.steps=many", r"`train.steps` is 'many': .*valid integer"),
    ("train.zero_stage=4", r"`train.zero_stage` is 4: input should be 0, 1, 2 or 3"),
    ("train.precision=fp8", r"`train.precision` is 'fp8': input should be 'fp32' or 'bf16'"),
    ("model.family=flux", r"`model.family` is 'flux': input should be 'auto', 'cogvideox'"),
    ("model.adapter.rank=-1", r"`model.adapter.rank` is -1: input should be greater than or equal to 1"),
    ("objective.name=pgdpo", r"unknown objective `pgdpo`; did you mean `pg_dpo`"),
    ("objective.bta=3", r"objective `dpo`.*`?bta`?.*did you mean `beta`"),
    ("objective.beta=-1", r"`beta`.*-1"),
    ("objective.beta=.nan", r"`beta`.*nan"),
    ("data={}", r"key `data.train` is missing"),
    ("model=null", r"`model` is None"),
    ("train=5", r"`train` is 5"),
    ("{train.reference: adapter}", r"expected section.key=value"),
    ("train.deepspeed.bf16.enabled=true", r"command line: train.deepspeed.bf16 cannot be set"),
    ("train.deepspeed.1=2", r"command line: train.deepspeed.1 is unknown: allowed"),
    (
        "train.deepspeed.zero_optimization.stage3_a=2",
        r"command line: .*optimization.stage3_a is unknown",
    ),
    ("train.steps.x=1", r"`steps` is a single value and has no key `x`"),
]


def test_what_is_refused_before_it_wrote_anything_leaves_no_folder(tmp_path):
    config = write_config(tmp_path / "config.yaml", tmp_path / "runs" / "out", tmp_path / "no_model")
    assert "run `pgdpo prepare`" in refused("train", config)
    assert list(tmp_path.iterdir()) == [config]


@pytest.mark.parametrize(("override", "message"), BAD_CONFIGS, ids=[row[0] for row in BAD_CONFIGS])
def test_bad_configurations(config_file, override, message):
    text = refused("train", config_file, override)
    assert re.search(message, text), text
    assert not (config_file.parent / "out" / "dpo").exists()


def test_the_line_of_a_wrong_key_is_named(tmp_path):
    path = write_config(tmp_path / "c.yaml", tmp_path / "out", tmp_path, train={"steps": "x"})
    line = 1 + path.read_text().splitlines().index("  steps: x")
    with pytest.raises(InputError, match=rf"c.yaml:{line}: `train.steps` is 'x'"):
        load_config(path, ["train.seed=1"])


def test_every_key_has_a_description():
    def walk(model):
        for name, field in model.model_fields.items():
            inner = getattr(field.annotation, "model_fields", None)
            assert inner or field.description, name
            if inner:
                walk(field.annotation)

    walk(Config)


def test_a_config_is_checked_without_importing_torch(config_file):
    code = (
        "import sys; from pgdpo.config.read import load_config; load_config(sys.argv[1]); "
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(config_file)], check=True)


def test_exit_code_2_and_one_message(config_file):
    done = launch("train", config_file, "train.stpes=3")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.fixture
def manifest(world, tmp_path):
    """A copy of the toy's held-out manifest, with its clips, and a way to change its rows."""
    folder = tmp_path / "clips"
    shutil.copytree(world / "out" / "toy", folder)
    return folder / "held_out.jsonl"


def prepare_with(config_file, manifest, change) -> str:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows = change(rows) or rows
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = config_file.parent / "fresh"
    overrides = (f"output_dir={output}", f"data.train={manifest}", "data.held_out=null")
    message = refused("prepare", config_file, *overrides)
    assert not (output / "prepared" / "train" / "index.json").exists()
    return message


def replace(rows, key, value):
    rows[1][key] = value


BAD_ROWS = {
    "a missing clip": (
        lambda rows: replace(rows, "chosen", "gone.mp4"),
        r"held_out.jsonl:2: `chosen` of pair `held_out-00001` is 'gone.mp4': no file at",
    ),
    "an id twice": (
        lambda rows: replace(rows, "id", rows[0]["id"]),
        r":2: id `held_out-00000` stands on line 1",
    ),
    "a key too few": (lambda rows: rows[1].pop("prompt") and None, r":2: key `prompt` is missing"),
    "a number for a prompt": (lambda rows: replace(rows, "prompt", 3), r":2: `prompt` is 3; allowed: text"),
    "no rows": (lambda rows: rows.clear(), r"the manifest is empty"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows(config_file, manifest, name):
    change, message = BAD_ROWS[name]
    text = prepare_with(config_file, manifest, change)
    assert re.search(message, text), text


def test_clips_that_cannot_be_trained_on(config_file, manifest):
    from pgdpo.video import read_video, write_video

    first = json.loads(manifest.read_text().splitlines()[0])
    clip = manifest.parent / first["chosen"]
    frames = read_video(clip)

    def with_clip(write):
        write()
        return prepare_with(config_file, manifest, lambda rows: None)

    text = with_clip(lambda: write_video(clip, frames[:, :32], 8))
    assert re.search(r"pair `held_out-00000`: height is 32 in .*chosen.mp4 and 64 in .*rejected.mp4", text), (
        text
    )
    text = with_clip(lambda: write_video(clip, frames[:9], 8))
    assert re.search(r"pair `held_out-00000`: its row says num_frames 12 and .*chosen.mp4 has 9", text), text
    text = with_clip(lambda: clip.write_text("<html>not found</html>"))
    assert re.search(r"held_out-00000.*chosen.mp4: not a video", text), text
    write_video(clip, frames, 8)
    overrides = (f"output_dir={config_file.parent / 'fresh'}", f"data.train={manifest}", "data.held_out=null")
    text = refused("prepare", config_file, *overrides, "data.num_frames=13")
    assert re.search(r"held_out-00000.*holds 12 frames at 8 frames a second and 13 were asked for", text), (
        text
    )


def test_a_missing_manifest(config_file):
    text = refused(
        "prepare", config_file, "data.train=nowhere.jsonl", f"output_dir={config_file.parent / 'fresh'}"
    )
    assert "nowhere.jsonl: no such manifest" in text


def test_sizes_that_the_encoder_cannot_take(config_file):
    text = refused("prepare", config_file, "data.height=18", f"output_dir={config_file.parent / 'fresh'}")
    assert "data.height is 18; allowed are multiples of 4: 16 or 20" in text


def test_training_before_preparing(config_file):
    text = refused("train", config_file, f"output_dir={config_file.parent / 'fresh'}")
    assert "index.json: not there: run `pgdpo prepare`" in text


def test_prepared_with_another_size(config_file):
    assert "`sizes` is [[4, 16, 16]], this configuration needs [[4, 32, 16]]" in refused(
        "train", config_file, "data.height=32"
    )


def test_a_damaged_shard_is_named_and_prepare_makes_just_that_one_anew(config_file, world):
    output = config_file.parent / "fresh"
    shutil.copytree(world / "out", output, symlinks=False)
    shards = sorted((output / "prepared" / "train").glob("shard-*.safetensors"))
    damaged, whole = shards[1], shards[0]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    before = whole.stat().st_mtime_ns
    text = refused("train", config_file, f"output_dir={output}")
    assert re.search(rf"{damaged.name}: its SHA-256 is .*run `pgdpo prepare` again", text), text
    run_pgdpo("prepare", config_file, f"output_dir={output}")
    assert whole.stat().st_mtime_ns == before
    run_pgdpo("train", config_file, f"output_dir={output}", "train.steps=1")


def test_attention_without_an_operator(config_file):
    text = refused("train", config_file, "model.attention=xformers")
    assert "model.attention is 'xformers': it has no operator for cpu" in text and "native" in text
    assert "model.attention is 'xfomers'; diffusers knows" in refused(
        "train", config_file, "model.attention=xfomers", "name=typo"
    )


def test_fused_ops_where_triton_cannot_run(config_file, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    text = refused("train", config_file, "model.kernels=triton")
    assert "model.kernels is `triton`: Triton needs a GPU, this is cpu; use `auto` or `eager`" in text


def test_a_checkpoint_of_another_model_or_data(config_file):
    run_pgdpo("train", config_file)
    text = refused("train", config_file, "--resume", "model.adapter.rank=8")
    assert re.search(r"dpo: its model.adapter.rank is 4, the command line says 8.*--restart", text), text
    assert "its train.seed is 0, the command line says 1" in refused(
        "train", config_file, "--resume", "train.seed=1"
    )
    assert "its model.adapter.rank is 4, the" in refused("export", config_file, "model.adapter.rank=8")
    assert "holds checkpoints of an earlier run" in refused("train", config_file)


def test_a_batch_that_does_not_split(config_file):
    text = refused("train", config_file, "train.global_batch_groups=5")
    assert "must be a multiple of micro_batch_groups x data-parallel ranks = 2 x 1: take 4 or 6" in text


def test_adapter_targets_that_are_not_there(config_file):
    text = refused("train", config_file, "model.adapter.target_modules=[to_x]")
    assert "target_modules is ['to_x']" in text and "to_q" in text


def test_a_folder_that_is_no_wan_pipeline(config_file, tmp_path):
    assert "no model_index.json" in refused("train", config_file, f"model.path={tmp_path}")
