"""`pgdpo check`: everything that is wrong at once, and a new manifest of what can be mended."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from pgdpo.checking import run_check
from pgdpo.cli import app
from pgdpo.config.evaluate import NO_HELD_OUT
from pgdpo.files.atomic import sha256_of
from pgdpo.messages.console import say_once
from pgdpo.messages.errors import InputError
from pgdpo.rows.manifest import scan_manifest
from pgdpo.video import verify_video, write_video
from tests.worlds import write_config

pytestmark = pytest.mark.quick

GREY = np.full((6, 16, 16, 3), 100, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Clips of 6 frames at 8 fps, 16x16 pixels, and some with one thing wrong."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(4):
        for side in "ab":
            write_video(clips / f"{number}{side}.mp4", GREY + 10 * number + (side == "b"), 8)
    write_video(clips / "short.mp4", GREY[:3], 8)
    write_video(clips / "wide.mp4", np.full((6, 16, 32, 3), 90, np.uint8), 8)
    write_video(clips / "fast.mp4", np.full((12, 16, 16, 3), 80, np.uint8), 16)
    whole = (clips / "fast.mp4").read_bytes()
    (clips / "cut.mp4").write_bytes(whole[: int(len(whole) * 0.9)])
    (clips / "page.mp4").write_text("<html>not found</html>")
    return tmp_path


def row(number, chosen=None, rejected=None, **more):
    clips = {
        "chosen": f"clips/{chosen or f'{number}a'}.mp4",
        "rejected": f"clips/{rejected or f'{number}b'}.mp4",
    }
    return {"id": str(number), "prompt": "a red ball", **clips, **more}


def check(folder, rows, tiny_wan="toy", fix=None, changes=(), **sections):
    """Findings for a configuration with these rows; 4 frames of 16x16 pixels are asked for."""
    manifest = folder / "rows.jsonl"
    manifest.write_text("".join(json.dumps(each) + "\n" for each in rows))
    data = {"train": str(manifest), "held_out": None, **sections.pop("data", {})}
    config = write_config(folder / "config.yaml", folder / "out", tiny_wan, data=data, **sections)
    return run_check(str(config), list(changes), fix=fix, json_file=folder / "found.json")


def found(findings, severity="error"):
    return [(problem.line, problem.key) for problem in findings.problems if problem.severity == severity]


def test_good_data_is_found_good_without_a_weight(folder, monkeypatch):
    from pgdpo.models.families.wan import Wan

    monkeypatch.setattr(Wan, "load_transformer", lambda *_, **__: pytest.fail("weights were loaded"))
    findings = check(folder, [row(number) for number in range(4)])
    assert findings.problems == [] and findings.exit_code == 0 and len(findings.clips) == 8
    assert json.loads((folder / "found.json").read_text())["errors"] == 0


def test_everything_is_said_at_once(folder, capsys):
    rows = [
        row(0, "gone"),
        row(1, "short", preference=7),
        row(2, "page"),
        row(3, "cut"),
        row(4, "0a", "wide"),
        row(5, "0a", "fast"),
        row(6, "0a", "short"),
        row(7, "0a", "0b", num_frames=5, sha256_chosen="0" * 64),
        row(8, "1a", "1b", fps=8),
    ]
    findings = check(folder, rows, train={"steps": 0, "stepps": 3})
    found_in_config = [problem.key for problem in findings.problems if problem.file.endswith("config.yaml")]
    assert found_in_config == ["train.steps", "train.stepps"]
    assert [
        each for each in found(findings) if each[0] and each[0] < 10 and each[1] not in found_in_config
    ] == [
        (1, "chosen"),  # not there
        (2, "preference"),
        (3, "chosen"),  # a web page
        (4, "chosen"),  # truncated
        (5, "width"),
        (6, "fps"),
        (7, "rejected"),  # too short
        (8, "num_frames"),  # the row says another number
        (8, "sha256_chosen"),
    ]
    assert found(findings, "warning") == []
    assert findings.exit_code == 2
    written = json.loads((folder / "found.json").read_text())
    assert written["errors"] == 11 == len(written["problems"]) and written["skipped"]
    assert all(problem["allowed"] and problem["suggestion"] for problem in written["problems"])
    assert "11 errors, 0 warnings" in capsys.readouterr().out


def test_the_command_prints_a_table_and_ends_with_2(folder, capsys, monkeypatch):
    from pgdpo.messages.console import console

    monkeypatch.setattr(console, "width", 160)
    monkeypatch.chdir(folder)
    (folder / "rows.jsonl").write_text(json.dumps(row(0, "gone")) + "\n")
    data = {"train": str(folder / "rows.jsonl"), "held_out": None}
    config = write_config(folder / "config.yaml", folder / "out", "toy", data=data)
    with pytest.raises(SystemExit) as ended:
        app(["check", str(config)])
    said = capsys.readouterr().out
    assert ended.value.code == 2 and "what to do" in said and "│ error" in said and "rows.jsonl:1" in said


def test_fix_mends_what_it_can_and_leaves_the_source_alone(folder):
    rows = [
        row(0, licence="CC0-1.0", anything=[1, {"x": 2}]),
        row(1, "0a", "wide", width=16, sha256_rejected=sha256_of(folder / "clips" / "wide.mp4")),
        row(2, "0a", "fast", num_frames=6),
        row(3, "0a", "cut"),
        row(4, "0a", "short"),
        row(5, "0a", "0b", fps=24),
        row(0, "1a", "1b"),
        {"id": "8", "prompt": 3, "chosen": "clips/0a.mp4", "rejected": "clips/0b.mp4"},
        row(9, "0a", "0b", sha256_chosen="0" * 64),
    ]
    before = {path: path.read_bytes() for path in (folder / "clips").iterdir()}
    out = folder / "mended" / "rows.jsonl"
    findings = check(folder, rows, fix=str(out))
    mended = findings.mended
    assert list(mended.reencoded) == ["1", "2"] and list(mended.corrected) == ["5"] and mended.kept == 4
    assert set(mended.dropped) == {"3", "4", f"0 ({folder / 'rows.jsonl'}:7)", "8", "9"}
    assert findings.exit_code == 0 and mended.outside == str(folder / "clips")
    assert {path: path.read_bytes() for path in (folder / "clips").iterdir()} == before

    kept, problems = scan_manifest(out, folder)
    assert problems == [] and [each.values["id"] for each in kept] == ["0", "1", "2", "5"]
    assert kept[0].values["anything"] == [1, {"x": 2}] and kept[3].values["fps"] == 8
    for each in kept[1:3]:
        infos = [verify_video(each.clips[side]) for side in ("chosen", "rejected")]
        assert {(info.width, info.height, info.num_frames, info.fps) for info in infos} == {(16, 16, 6, 8.0)}
    assert kept[1].values["sha256_rejected"] == sha256_of(
        kept[1].record and folder / "mended" / kept[1].values["rejected"]
    )
    again = check(folder, rows, changes=[f"data.train={out}", f"data.media_root={folder}"])
    assert again.problems == []


def test_fix_refuses_to_overwrite_what_it_checks(folder):
    with pytest.raises(InputError, match="the manifest that is checked"):
        check(folder, [row(0)], fix=str(folder / "rows.jsonl"))
    with pytest.raises(InputError, match="none of the rows can be mended"):
        check(folder, [row(0, "short")], fix=str(folder / "new.jsonl"))
    assert not (folder / "new.jsonl").exists()


def test_errors_of_the_configuration_stay_errors_with_fix(folder):
    findings = check(folder, [row(0, "page"), row(1)], fix=str(folder / "new.jsonl"), train={"steps": 0})
    assert findings.mended.kept == 1 and findings.exit_code == 2


@pytest.mark.parametrize(
    ("objective", "more", "message"),
    [
        ({"name": "dense_dpo"}, [{}, {}], "column `segment_labels` is missing in 2 of 2 rows"),
        ({"name": "dense_dpo"}, [{"segment_labels": [1, 0]}, {"segment_labels": [1]}], "of another length"),
        ({"name": "dense_dpo"}, [{"segment_labels": [1] * 9}] * 2, "9 segments, and the latents have 4 frames"),
        ({"name": "dpo"}, [{"weight": 1}, {}], "column `weight` is missing in 1 of 2 rows"),
        ({"name": "smpo"}, [{}, {}], "column `probability` is missing in 2 of 2"),
        ({"name": "video_dpo"}, [{"preference": 0.9}] * 2, "column `gap_frequency` is missing in 2 of 2"),
        ({"name": "smpo"}, [{"preference": 1}, {"preference": 1}], "lives by how sure a label is"),
        ({"name": "dpo"}, [{"prompt": " ".join("abcdefghijk")}, {}], "has 11 different words"),
    ],
)  # fmt: skip
def test_what_the_objective_and_the_encoders_need(folder, objective, more, message):
    findings = check(folder, [row(number, **each) for number, each in enumerate(more)], objective=objective)
    errors = [problem for problem in findings.problems if problem.severity == "error"]
    assert len(errors) >= 1 and message in errors[0].what and errors[0].line and errors[0].allowed


@pytest.mark.parametrize(("guidance", "refused"), [(2.0, 1), (1.0, 0)])
def test_a_negative_prompt_that_the_encoder_does_not_take(folder, guidance, refused):
    sampled = {"negative_prompt": " ".join("abcdefghij"), "guidance_scale": guidance}
    findings = check(folder, [row(number) for number in range(4)], evaluate=sampled)
    assert [problem.key for problem in findings.problems] == ["evaluate.negative_prompt"] * refused
    assert all("has 10 different words" in problem.what and problem.line for problem in findings.problems)


def test_buckets(folder):
    buckets = [[4, 16, 16], [4, 16, 32]]
    rows = [row(0), row(1, "wide", "wide", label=[1, 0]), row(2, "short", "short", label=[1, 0])]
    rows[0]["label"] = [1, -1]
    findings = check(folder, rows, data={"buckets": buckets}, changes=["train.global_batch_groups=2"])
    assert found(findings) == [(3, "chosen"), (3, "rejected")] and found(findings, "warning") == []
    assert "4x16x16 or 4x16x32" in findings.problems[0].allowed
    findings = check(
        folder,
        rows[:2],
        data={"buckets": [[4, 16, 16], [4, 18, 32]]},
        changes=["train.global_batch_groups=2"],
    )
    [error] = [problem for problem in findings.problems if problem.severity == "error"]
    assert error.key in ("data.height", "data.buckets") and "16 or 20" in error.allowed


def test_what_curation_reads(folder):
    scores = {"chosen": {"total": 0.9}, "rejected": {"total": 0.2}}
    rows = [row(0, scores=scores, source="a"), row(1, scores={"chosen": {"total": 1}}, source="a")]
    select = [{"by": "margin", "score": "total"}, {"by": "source", "sources": ["b"]}]
    findings = check(folder, rows, data={"select": select}, changes=["train.global_batch_groups=2"])
    [first, second] = findings.problems
    assert (first.line, first.key) == (2, "scores") and "`total` is missing in 1 of 2 rows" in first.what
    assert second.key == "data.select.1.sources" and second.allowed == "a" and second.line
    rows[1] = row(1, scores=scores, source="b")
    assert (
        check(folder, rows, data={"select": select}, changes=["train.global_batch_groups=2"]).problems == []
    )


def test_preferences_feed_the_objectives(folder):
    rows = [row(0, preference=0.9), row(1)]
    assert found(check(folder, rows, objective={"name": "adpo"})) == []
    segments = [{"start": 0, "end": 1, "preference": 1}, {"start": 1, "end": 2, "preference": 0}]
    findings = check(
        folder, [row(0, segments=segments), row(1, segments=segments)], objective={"name": "dense_dpo"}
    )
    assert found(findings) == []


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([row(0, preference=0.5), row(1)], ["data.ties=keep"], "trains them as clear preferences"),
        ([row(0, preference=0.3), row(1)], [], "the rejected clip is the better one"),
        ([row(0, "0a", "0a"), row(1)], [], "the same file as `chosen`"),
        ([row(0, weigth=1), row(1)], [], "key `weigth` is not one that is read"),
        ([row(0), row(1)], ["train.global_batch_groups=8"], "is 8, and data.train has 2 pairs"),
        ([row(0), row(1)], ["data.height=32"], "it is enlarged"),
        ([row(0, prompt=""), row(1)], [], "is empty"),
        ([row(0), row(1)], ["data.held_out=rows.jsonl"], "of a held-out pair stands in data.train too"),
    ],
)  # fmt: skip
def test_warnings(folder, rows, changes, message, monkeypatch):
    monkeypatch.chdir(folder)
    findings = check(folder, rows, changes=["train.global_batch_groups=2", *changes])
    assert findings.exit_code == 0
    warned = [problem.what for problem in findings.problems]
    assert any(message in what for what in warned), warned


def test_batches_and_sizes_that_do_not_fit(folder):
    findings = check(folder, [row(0), row(1)], changes=["train.global_batch_groups=3"])
    [error] = [problem for problem in findings.problems if problem.severity == "error"]
    assert error.key == "train.global_batch_groups" and "2 or 4" in error.allowed
    findings = check(folder, [row(0), row(1)], changes=["data.height=18", "train.global_batch_groups=2"])
    [error] = [problem for problem in findings.problems if problem.severity == "error"]
    assert (error.key, error.value) == ("data.height", "18") and "16 or 20" in error.allowed


@pytest.mark.parametrize(
    ("changes", "severity", "key", "message"),
    [
        (["train.sequence_parallel=3"], "error", "train.sequence_parallel", "divide the 2 attention heads"),
        (["model.attention=flsh"], "error", "model.attention", "'flsh'"),
        (["model.reference_attention=sage"], "warning", "model.reference_attention", "no operator for cpu"),
        (
            ["train.zero_stage=3", "train.offload_optimizer=nvme", "train.nvme_path=/proc/nvme"],
            "warning",
            "train.nvme_path",
            "nothing can be written there",
        ),
    ],
)
def test_what_the_trainer_would_refuse(folder, tiny_wan, changes, severity, key, message, monkeypatch):
    """What this machine lacks is a warning where it has no GPU: it will not train."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    findings = check(
        folder, [row(0), row(1)], tiny_wan=tiny_wan, changes=["train.global_batch_groups=2", *changes]
    )
    [problem] = findings.problems
    assert (problem.severity, problem.key) == (severity, key) and message in problem.what


def test_all_that_the_settings_hold_is_said_at_once(folder, tiny_wan):
    """A size that the encoder does not take hides nothing of the adapter, the reward and the trackers."""
    changes = [
        "data.height=18",
        "model.adapter.target_modules=[to_z]",
        "evaluate.reward=my_rewards:motion",
        "model.gradient_checkpointing=selective",
        "model.attention=_native_math",
        "train.global_batch_groups=2",
    ]
    findings = check(folder, [row(0), row(1)], tiny_wan=tiny_wan, changes=changes)
    assert sorted(problem.key for problem in findings.problems if problem.severity == "error") == [
        "data.height",
        "evaluate.reward",
        "model.adapter.target_modules",
        "model.gradient_checkpointing",
    ]


@pytest.mark.parametrize("line", ["raise RuntimeError('no licence')", "import sys; sys.exit(3)", "score = 3"])
def test_a_reward_is_imported_which_is_said(folder, line, capfd, monkeypatch):
    """Whatever the module does is an error of the key; nothing is imported where no reward is named."""
    (folder / "a_reward.py").write_text(line)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"a_reward": ["a"]})
    monkeypatch.delitem(sys.modules, "a_reward", raising=False)
    say_once.cache_clear()
    changes = ["train.global_batch_groups=2", "evaluate.reward=null"]
    assert check(folder, [row(0), row(1)], changes=changes).problems == [] and "a_reward" not in sys.modules
    findings = check(folder, [row(0), row(1)], changes=[*changes, "evaluate.reward=a_reward:score"])
    [problem] = findings.problems
    assert (problem.key, problem.value) == ("evaluate.reward", "a_reward:score") and findings.exit_code == 2
    assert "`a_reward` is imported, which runs its code" in " ".join(capfd.readouterr().out.split())


def test_more_prompts_than_are_held_out(folder):
    (folder / "held.jsonl").write_text(json.dumps(row(2)) + "\n")
    data = {"held_out": str(folder / "held.jsonl")}
    findings = check(folder, [row(0), row(1)], data=data, changes=["train.global_batch_groups=2"])
    [problem] = findings.problems
    assert (problem.key, problem.severity) == ("evaluate.num_prompts", "warning")
    assert "is 2, and data.held_out has 1 pairs" in problem.what


def test_rules_that_leave_nothing_are_said_before_anything_is_prepared(folder):
    scores = {side: {"total": 0.5} for side in ("chosen", "rejected")}
    rows = [row(number, scores=scores, source="a") for number in range(2)]
    for rules, message in (
        (
            "[{by: chosen_score, score: total, least: 2}]",
            "after the rule `chosen_score` none of 2 pairs is left",
        ),
        ("[{by: source, sources: [a, b]}]", "`data.select.0` names b: no row has such a source"),
        ("[{by: duplicates}, {by: margin, score: total}]", None),
        ("[{by: fifa, score: total, keep: 0.5}, {by: chosen_score, score: total, least: 2}]", None),
    ):
        changes = ["train.global_batch_groups=2", f"data.select={rules}"]
        problems = check(folder, rows, changes=changes).problems
        assert [message in problem.what for problem in problems] == ([True] if message else [])
    problems = check(folder, rows, changes=["train.global_batch_groups=2", "data.segments=5"]).problems
    assert ["data.segments asks for 5 segments" in problem.what for problem in problems] == [True]


def test_a_model_folder_that_is_none(folder):
    findings = check(folder, [row(0), row(1)], tiny_wan=folder, changes=["train.global_batch_groups=2"])
    assert [problem.key for problem in findings.problems] == ["model.path"]


@pytest.mark.parametrize(
    ("pairs", "errors", "said"),
    [(300, 0, None), (299, 2, "3 of 299 pairs are bad, 1.0%"), (199, 3, "2 of 199 pairs are bad, 1.0%")],
)
def test_bad_pairs_that_prepare_skips_are_warnings(folder, pairs, errors, said):
    """Up to 1% of them, with those whose masks show to be empty at the model's size; the rest is held against it."""
    Image.new("L", (16, 16)).save(folder / "black.png")
    bad = [row("p", "page", "0b"), row("c", "0a", "cut"), row("m", "0a", "0b", mask="black.png")]
    rows = [row(number, "0a", "0b") for number in range(pairs - 3)] + bad
    findings = check(folder, rows, data={"on_bad_data": "skip"})
    assert findings.counts["error"] == errors and findings.exit_code == (2 if errors else 0)
    if said:
        assert any(f"{said}; up to 1% may be skipped" in problem.what for problem in findings.problems)
        return
    assert findings.skipped == [f"evaluate: {NO_HELD_OUT}"]  # the model's part is not
    assert [problem.pair for problem in findings.problems if "left out" in problem.what] == ["p", "c", "m"]
    assert len(findings.rows["train"]) == 297 and findings.left_out == {"train": 3}
