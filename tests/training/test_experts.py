"""Both experts of Wan 2.2 in one command: what two runs of one expert train, to the bit, in any order of turns."""

import json
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError, Stopped
from pgdpo.report import listing
from pgdpo.training import experts, step, trainer
from tests.models.families import KINDS
from tests.models.road import Road, generate, open_pipeline
from tests.worlds import metrics, run_pgdpo, stored

EXPERTS = ("high_noise", "low_noise")
COSTS = {"seconds", "pairs_per_second", "tokens_per_second", "mfu", "peak_memory"}
HALF = "train.precision=bf16"
pytestmark = pytest.mark.usefixtures("eager_kernels")


@pytest.fixture(scope="module")
def road(saved, world, tmp_path_factory):
    """A prepared configuration of both experts."""
    kind = KINDS["wan 2.2 t2v a14b high"]
    road = Road(kind, saved(kind.save), world, tmp_path_factory.mktemp("experts"))
    path = road.config(expert="both")
    run_pgdpo("prepare", path)
    return path


@pytest.fixture(scope="module")
def alone(road):
    """`alone(expert, *overrides)`: the folder of a run of that expert alone, trained once."""
    trained = {}

    def train(expert: str, *overrides: str):
        key = expert, *overrides
        if key not in trained:
            name = "-".join([expert, *(re.sub(r"\W", "", word) for word in overrides)])
            run_pgdpo("train", road, f"name={name}", f"model.expert={expert}", *overrides)
            trained[key] = road.parent / "out" / name
        return trained[key]

    return train


def same(part, single) -> bool:
    """Whether two runs have the same figures, but for their costs, and the same newest checkpoint."""
    found, wanted = stored(part), stored(single)
    assert found and found.keys() == wanted.keys()
    figures = [
        [{key: value for key, value in row.items() if key not in COSTS} for row in rows]
        for rows in (metrics(part.parent, part.name), metrics(single.parent, single.name))
    ]
    return figures[0] == figures[1] and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("given", [[], [HALF], ["train.expert_turns=1"]], ids=" ".join)
def test_both_are_what_two_runs_train(road, alone, given):
    name = "both-" + "-".join(re.sub(r"\W", "", word) for word in given)
    run_pgdpo("train", road, f"name={name}", *given)
    run = road.parent / "out" / name
    for expert in EXPERTS:
        single = alone(expert, *(word for word in given if "turns" not in word))
        assert same(run / expert, single)
    assert not (run / "checkpoints").exists()
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "finished"]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_expert_is_let_go_of_before_the_other_opens(road, monkeypatch, stage):
    """With its optimizer: when a trainer is built, no tensor of the one before is alive."""
    held, alive = [], []

    class Watched(trainer.Trainer):
        def __init__(self, *given, **named):
            alive.append(sum(reference() is not None for reference in held))
            super().__init__(*given, **named)
            engine = self.policy.engine
            held.extend(weakref.ref(tensor) for tensor in engine.module.parameters())
            held.extend([weakref.ref(engine), weakref.ref(engine.optimizer)])

    monkeypatch.setattr(experts, "Trainer", Watched)
    turns = [f"train.zero_stage={stage}", "train.expert_turns=1", f"name=released-{stage}"]
    run_pgdpo("train", road, *turns)
    assert alive == [0, 0, 0, 0] and len(held) > 40


@pytest.mark.parametrize(
    ("stopped", "turns", "after"), [("high_noise", 2, 1), ("high_noise", 1, 2), ("low_noise", 1, 3)]
)
def test_a_run_that_was_stopped_goes_on_in_either_expert(road, alone, monkeypatch, stopped, turns, after):
    """What is done is not done again, and what comes out is as if nothing had happened."""
    take = step.Step.take

    def stops(self, loaded):
        if self.policy.family.model.expert == stopped and self.done == 1:
            raise Stopped("SIGTERM", 143)
        return take(self, loaded)

    run = road.parent / "out" / f"stopped-{stopped}-{turns}"
    given = [road, f"name={run.name}", f"train.expert_turns={turns}"]
    with monkeypatch.context() as context, pytest.raises(Stopped, match=f"{stopped}: SIGTERM after step 1"):
        context.setattr(step.Step, "take", stops)
        run_pgdpo("train", *given)
    with pytest.raises(InputError, match="holds checkpoints of an earlier run"):
        run_pgdpo("train", *given)
    if turns == 2:
        for command in (["export"], ["evaluate"], ["curate", "--implicit-rewards"]):
            with pytest.raises(
                InputError, match=r"low_noise: not trained yet: go on with `pgdpo train \S+ --resume`$"
            ):
                run_pgdpo(command[0], run, *command[1:])
    run_pgdpo("train", run, "--resume")
    assert all(same(run / expert, alone(expert)) for expert in EXPERTS)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    found = [(row["event"], row["step"]) for row in events]
    assert found == [("started", 0), ("stopped", after), ("resumed", after), ("finished", 4)]


def test_what_is_wrong_with_either_is_said_before_anything_is_trained(road, alone):
    """Of the second expert too; and a folder is of one run."""
    out = road.parent / "out"
    half = shutil.copytree(load_config(str(road)).model.path + "/transformer", out / "half" / "transformer")
    with pytest.raises(
        InputError, match=r"model\.transformer is .* and model\.expert `both`: transformer_2/ is miss"
    ):
        run_pgdpo("train", road, "name=refused", f"model.transformer={half.parent}")
    assert not list((out / "refused").rglob("checkpoints"))
    single = alone("high_noise")
    with pytest.raises(InputError, match="holds checkpoints of a run of one model"):
        run_pgdpo("train", road, f"name={single.name}")
    run_pgdpo("train", road, "name=taken", "train.steps=1")
    for back in ("1", "best"):
        with pytest.raises(
            InputError, match=f"--step is {back}, and .* is a run of two experts: go back with one"
        ):
            run_pgdpo("train", out / "taken", "--resume", "--step", back)
    with pytest.raises(InputError, match=r"taken is a run of two experts, each with margins .* name one, /"):
        run_pgdpo("curate", out / "taken", "--implicit-rewards")
    for how in ([], ["--restart"]):
        with pytest.raises(InputError, match="holds a run of both experts"):
            run_pgdpo("train", road, "name=taken", "model.expert=high_noise", *how)
    assert (out / "taken" / "events.jsonl").is_file()
    with pytest.raises(InputError, match=r"its train\.seed is 0, .* 1.* it would no longer be one run"):
        experts.train_experts(load_config(str(road), ["name=taken", "train.seed=1"]), resume=True)
    held = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", held, str(out / "taken" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as another:
        another.stdout.readline()
        with pytest.raises(InputError, match="another command is at work there"):
            run_pgdpo("train", road, "name=taken", "--resume")
        another.stdin.close()


def test_both_are_judged_and_leave_together(road, undrawn):
    """Each on its own noise, clips with both; the card's lines load what left, and ComfyUI's files hold as much."""
    run = road.parent / "out" / "judged"
    looks = ["evaluate.every=1", "evaluate.every_prompts=1"]
    run_pgdpo("train", road, f"name={run.name}", "train.learning_rate=0.1", "train.expert_turns=1", *looks)
    run_pgdpo("evaluate", run)
    run_pgdpo("export", run, "--format", "diffusers", "--format", "comfyui", "--format", "merged")
    results = json.loads((run / "results.json").read_text())
    low, high = results["experts"]["low_noise"]["buckets"], results["experts"]["high_noise"]["buckets"]
    assert list(high) == ["sigma_0.75_1.00"] and high.keys() <= results["buckets"].keys() >= low.keys()
    pairs = [row["displacement"]["pairs"] for row in results["experts"].values()]
    assert pairs == [2, 2] and results["steps"] == 2
    page = (run / "report.html").read_text()
    assert "By expert" in page and "high_noise" in page
    rows = listing._row(run, run.name)[0]
    assert rows[2:4] == ["2/2", "finished"]

    folder, kind = run / "export", KINDS["wan 2.2 t2v a14b high"]
    base = Path(load_config(str(road)).model.path)
    loras, merged = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    noise = torch.randn(1, *kind.open(base).latent_shape(*kind.size))
    made = {}
    for name, code in (("base", ""), ("loras", loras), ("merged", merged)):
        pipeline = open_pipeline(kind, base)
        exec(code, {"pipeline": pipeline, "folder": str(folder)})
        made[name] = generate(kind, pipeline, noise)
    torch.testing.assert_close(made["merged"], made["loras"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(made["base"], made["loras"], atol=1e-3)
    for expert in EXPERTS:
        trained = load_file(folder / expert / "pytorch_lora_weights.safetensors")
        named = load_file(folder / f"judged-{expert}-comfyui.safetensors")
        assert len(named) == len(trained) > 0
        assert all(name.startswith("diffusion_model.") for name in named)


def test_a_study_refuses_both_before_its_first_run(road, tmp_path):
    study = tmp_path / "study.yaml"
    objectives = {"a": {"name": "dpo", "beta": 500}, "b": {"name": "dpo", "beta": 300}}
    given = {"output_dir": str(tmp_path / "out"), "base": str(road), "seeds": [0], "objectives": objectives}
    study.write_text(json.dumps(given), encoding="utf-8")
    with pytest.raises(InputError, match="`both`, and `pgdpo study` compares runs of one transformer"):
        run_pgdpo("study", study)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_are_what_two_runs_train_on_two_ranks(road, ranks, stage, precision):
    given = [f"train.zero_stage={stage}", f"train.precision={precision}", "train.micro_batch_groups=1"]
    name = f"ranks-{stage}-{precision}"
    ranks.train(
        road, {name: [*given, "train.expert_turns=1", "evaluate.every=1", "evaluate.every_prompts=1"]}
    )
    ranks.train(road, {f"{name}-{each}": [*given, f"model.expert={each}"] for each in EXPERTS})
    out = road.parent / "out"
    assert all(same(out / name / each, out / f"{name}-{each}") for each in EXPERTS)
