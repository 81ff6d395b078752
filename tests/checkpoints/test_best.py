"""The best checkpoint by a held-out figure: found, kept beside the newest, and taken by name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.checkpoints.best import best_step
from pgdpo.checkpoints.published import checkpoints_of, prune, step_of
from pgdpo.messages.errors import InputError
from tests.worlds import run_pgdpo

LESS = {
    "loss": True,
    "implicit_accuracy": False,
    "margin": False,
    "displacement": True,
    "excess/chosen": True,
}


def steps(run) -> list[int]:
    return [step_of(path) for path in checkpoints_of(run)]


@given(
    values=st.dictionaries(st.integers(0, 9), st.none() | st.sampled_from([0.1, 0.2, 0.3])),
    saved=st.sets(st.integers(1, 9)),
    figure=st.sampled_from(list(LESS)),
)
@settings(max_examples=60, deadline=None)
def test_of_what_was_saved_and_measured_the_best_and_of_equals_the_later(
    tmp_path_factory, values, saved, figure
):
    run = tmp_path_factory.mktemp("run")
    rows = [{"step": step, figure: {"value": value}} for step, value in values.items()]
    (run / "held_out.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"step": 3}][: len(rows)])
    )
    for step in saved:
        (run / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    known = {step: value for step, value in values.items() if value is not None and step in saved}
    wanted = None
    for step in sorted(known):
        if wanted is None or (known[step] <= known[wanted] if LESS[figure] else known[step] >= known[wanted]):
            wanted = step
    assert best_step(run, figure) == wanted
    assert best_step(run, None) is None


@pytest.mark.usefixtures("eager_kernels", "undrawn")
def test_the_best_is_kept_and_taken_by_name(config_file, capsys):
    often = ("evaluate.every=1", "evaluate.every_prompts=0", "train.checkpoint_every=1", "train.steps=6")
    run_pgdpo("train", config_file, "name=all", *often, "train.keep_checkpoints=9")
    folder = config_file.parent / "out"
    best = {figure: best_step(folder / "all", figure) for figure in LESS}
    figure, step = next((figure, step) for figure, step in best.items() if step < 5)
    run_pgdpo(
        "train", config_file, "name=one", *often, "train.keep_checkpoints=1", f"train.keep_best={figure}"
    )
    assert steps(folder / "one") == [step, 6]
    run_pgdpo("train", config_file, "name=none", *often, "train.keep_checkpoints=1", "train.keep_best=null")
    assert steps(folder / "none") == [6]
    capsys.readouterr()
    run_pgdpo("export", folder / "one", "--step", "best")
    run_pgdpo("runs", folder)
    said = capsys.readouterr().out
    assert f"best by {figure}: step {step} of {step}, 6" in said and f"{step}*, 6" in said
    assert f"| steps | {step} of" in (folder / "one" / f"export-step-{step:08d}" / "README.md").read_text()
    run_pgdpo(
        "evaluate", folder / "one", "--steps", "best,6", "evaluate.num_prompts=1", "evaluate.sampling_steps=1"
    )
    assert {path.name for path in (folder / "one" / "evaluations").glob("step-*")} == {
        f"step-{step:08d}",
        "step-00000006",
    }
    with pytest.raises(InputError, match="no best step: train.keep_best is None"):
        run_pgdpo("export", folder / "none", "--step", "best")
    with pytest.raises(InputError, match="--step is 'bst': expected a step such as 100, or `best`"):
        run_pgdpo("export", folder / "one", "--step", "bst")
    # What came after the best is set aside, its measurements with it.
    run_pgdpo("train", folder / "one", "--resume", "--step", "best")
    aside = folder / "one" / "set-aside-1" / "held_out.jsonl"
    assert [json.loads(line)["step"] for line in aside.read_text().splitlines()] == list(range(7))
    found = (folder / "one" / "held_out.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in found] == list(range(7))


def test_a_best_one_that_is_neither_new_nor_a_multiple_stays(tmp_path):
    for step in range(1, 8):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    known = tuple(checkpoints_of(tmp_path))
    prune(tmp_path, 2, every=3, best=2, known_valid=known)
    assert steps(tmp_path) == [2, 3, 6, 7]
    prune(tmp_path, 2, every=3, best=7, known_valid=known)
    assert steps(tmp_path) == [3, 6, 7]
