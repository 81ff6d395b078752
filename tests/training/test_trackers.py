"""Numbers and clips reach every tracker, and a tracker that fails never stops a run."""

import json
import re
import sqlite3

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from pgdpo.training import trackers
from tests.worlds import metrics, run_pgdpo

pytestmark = pytest.mark.usefixtures("eager_kernels")


def looks(config_file, name) -> list[dict]:
    return [json.loads(line) for line in (config_file.parent / "out" / name / "held_out.jsonl").open()]


def board(output, run) -> EventAccumulator:
    found = EventAccumulator(str(output / run / "tensorboard"), size_guidance={"images": 0})
    found.Reload()
    return found


def test_validation_clips_go_to_files_and_to_tensorboard(config_file):
    run_pgdpo("train", config_file, "evaluate.every=2", "evaluate.every_prompts=2")
    output = config_file.parent / "out"
    clips = sorted(
        path.relative_to(output / "dpo").as_posix() for path in output.glob("dpo/validation/*/*.mp4")
    )
    assert clips == [f"validation/step-{step:08d}/{index:03d}.mp4" for step in (2, 4) for index in (0, 1)]
    tags = [tag for tag in board(output, "dpo").Tags()["images"] if tag.startswith("validation/")]
    assert len(tags) == 2
    shown = board(output, "dpo").Images(tags[0])
    assert [image.step for image in shown] == [2, 4]
    assert shown[0].encoded_image_string[:6] == b"GIF89a"
    # The same prompts from the same noise: what differs between the two is the training.
    assert shown[0].encoded_image_string != shown[1].encoded_image_string


def test_validation_leaves_the_losses_as_they_are(config_file):
    run_pgdpo("train", config_file, "name=plain")
    run_pgdpo("train", config_file, "name=shown", "evaluate.every=1")
    plain, shown = (
        [row["loss"] for row in metrics(config_file.parent / "out", n)] for n in ("plain", "shown")
    )
    assert plain == shown


def test_validation_needs_held_out_prompts(config_file):
    with pytest.raises(InputError, match="evaluate.every is 1, but data.held_out is empty"):
        run_pgdpo("train", config_file, "evaluate.every=1", "data.held_out=null")


def test_a_service_gets_every_scalar(config_file, monkeypatch, tmp_path):
    """trackio, which keeps its runs in a local database."""
    pytest.importorskip("trackio")
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio")
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    run_pgdpo("train", config_file, "train.trackers=[trackio]", "train.tracker_project=toy", "train.steps=2")
    rows = (
        sqlite3.connect(tmp_path / "trackio" / "toy.db")
        .execute("select step, metrics from metrics")
        .fetchall()
    )
    logged = {step: json.loads(values) for step, values in rows}
    for row in metrics(config_file.parent / "out", "dpo"):
        assert logged[row["step"]]["loss"] == row["loss"]


def test_held_out_figures_stand_in_tensorboard_under_the_reports_panels(config_file):
    from tensorboard.plugins.custom_scalar import layout_pb2

    run_pgdpo("train", config_file, "name=seen", "evaluate.every=2", "evaluate.every_prompts=0")
    found = board(config_file.parent / "out", "seen")
    (look,) = [row for row in looks(config_file, "seen") if row["step"] == 4]
    for figure in ("loss", "displacement", "margin"):
        assert [event.step for event in found.Scalars(f"held_out/{figure}")] == [0, 2, 4]
        for tag, bound in (("", "value"), ("/low", "low"), ("/high", "high")):
            shown = found.Scalars(f"held_out/{figure}{tag}")[-1].value
            assert shown == pytest.approx(look[figure][bound], rel=1e-6)
    bucket, figures = next(iter(look["buckets"].items()))
    shown = found.Scalars(f"held_out/{bucket}/margin")[-1].value
    assert shown == pytest.approx(figures["margin"]["value"], rel=1e-6)
    layout = layout_pb2.Layout()
    layout.ParseFromString(found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[0].chart}
    assert charts["Loss"] == ["^loss$", "^held_out/loss$"]
    tags = found.Tags()["scalars"]
    for title in ("Loss", "Margin", "Displacement", "Gradient norm", "Throughput"):
        assert all(any(re.search(pattern, tag) for tag in tags) for pattern in charts[title]), title


class Fake:
    """Stands for wandb, which is not installed here: what `init` is told."""

    def __init__(self):
        self.told = None

    def Settings(self):  # noqa: N802, as wandb has it
        return type("Settings", (), {"base_url": "https://api.wandb.invalid"})

    def init(self, **told):
        self.told = told


@pytest.mark.parametrize(
    ("answered", "own", "mode"), [(False, None, "offline"), (True, None, None), (False, "disabled", None)]
)
def test_a_server_that_does_not_answer_is_logged_for_later(
    config_file, monkeypatch, capsys, answered, own, mode
):
    """And is not asked where the user says how to log."""
    fake, asked = Fake(), []
    monkeypatch.setattr("importlib.import_module", lambda name: fake)
    monkeypatch.setattr(trackers, "answers", lambda address: asked.append(address) or answered)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if own is not None:
        monkeypatch.setenv("WANDB_MODE", own)
    trackers.Service("wandb", load_config(config_file))
    assert fake.told.get("mode") == mode and fake.told["project"] == "pgdpo"
    assert asked == ([] if own else ["https://api.wandb.invalid"])
    assert ("wandb sync" in capsys.readouterr().out) == (mode == "offline")


class Broken:
    """A service whose network fails at the second step."""

    def __init__(self, name, config):
        self.calls = 0

    def log(self, step, values):
        self.calls += 1
        if self.calls == 2:
            raise ConnectionError("the service is down")

    def close(self):
        raise AssertionError("a tracker that was left out is not closed")


def test_a_tracker_that_fails_is_named_and_left_out(config_file, monkeypatch):
    monkeypatch.setattr(trackers, "Service", Broken)
    monkeypatch.setattr("pgdpo.training.trainer.check_trackers", lambda config: None)
    run_pgdpo("train", config_file, "train.trackers=[wandb]")
    output = config_file.parent / "out"
    assert len(metrics(output, "dpo")) == 4
    events = [json.loads(line) for line in (output / "dpo" / "events.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event["event"] == "tracker"]
    assert event["step"] == 2 and "wandb failed and is left out" in event["message"]
    assert "the service is down" in event["message"]


def test_lines_that_a_full_disk_refuses_are_written_when_there_is_room(config_file, capsys):
    config = load_config(config_file, ["name=full"])
    config.run_dir.mkdir(parents=True)
    tracker = trackers.Jsonl(config, 0)
    lines = tracker._lines["metrics.jsonl"]
    room = lines._file
    tracker.log(1, {"loss": 1.0})
    with open("/dev/full", "ab", buffering=0) as full:
        lines._file = full
        tracker.log(2, {"loss": 2.0})
        tracker.log(3, {"loss": 3.0})
    assert capsys.readouterr().out.count("its lines wait for room") == 1
    lines._file = room
    tracker.log(4, {"loss": 4.0})
    tracker.close()
    assert [row["step"] for row in metrics(config.output_dir, "full")] == [1, 2, 3, 4]


def test_a_service_that_is_not_installed_is_refused_before_the_model_is_touched(config_file, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match="train.trackers names swanlab: it is not installed: pip install swanlab"
    ):
        run_pgdpo("train", config_file, "train.trackers=[swanlab]", "model.path=nowhere/at/all")
