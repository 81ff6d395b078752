"""Clips are sampled as each model's card says: what `evaluate` makes is what the real pipeline makes when told that."""

import json
import re
import shlex
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pgdpo.config import EvaluateConfig, SampleSettings, families, family_class, sample_settings
from pgdpo.config.read import load_config
from pgdpo.data.prepared import PreparedPairs
from pgdpo.diffusion.streams import by_stream
from pgdpo.diffusion.streams import seed_of as seed_of_stream
from pgdpo.messages.errors import InputError
from pgdpo.messages.progress import heard_by
from pgdpo.report.steps import evaluated_steps
from pgdpo.sampling.clips import _asking_for, sample_latents
from pgdpo_kernels import pair_noise
from tests.models.families import KINDS
from tests.models.road import (
    CPU,
    PROMPT,
    as_sampled,
    conditioning_of,
    latents_of,
    open_pipeline,
    seed_of,
    starting,
)
from tests.worlds import run_pgdpo, write_config


class HeldOut:
    """One prepared pair, as `sample_latents` reads it."""

    def __init__(self, family, kind) -> None:
        self.family, self.kind, self.size = family, kind, kind.size

    def size_of(self, index):
        return self.size

    def text(self, prompt, kind=None):
        return {name: tensor[0] for name, tensor in conditioning_of(self.family, [prompt], kind).items()}

    def __getitem__(self, item):
        return {
            "samples": [torch.empty(self.family.latent_shape(*self.size))] * 2,
            "pair_id": 7,
            "draw": item[1],
            "conditioning": self.text(PROMPT, self.kind),
        }


WITHOUT = {"guidance_scale": 1.0}  # guidance
FIRST = {}  # kind of each card, from text and from pictures
for name, kind in KINDS.items():
    FIRST.setdefault((kind.card, kind.image), name)
# The brothers that are left run all that is ours.
SLOW = (
    "wan 2.1 i2v",
    "wan 2.2 i2v a14b high",
    "wan 2.2 ti2v 5b i2v",
    "cogvideox 5b i2v",
    "cogvideox 1.5 i2v",
)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in FIRST.values() if name not in SLOW),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_what_evaluate_samples_is_what_the_real_pipeline_samples_as_its_card_says(name, saved, monkeypatch):
    kind = KINDS[name]
    folder = saved(kind.save)
    family, pipeline = kind.open(folder), open_pipeline(kind, folder)
    told, shift = split(kind.told)
    negative = family.cards[kind.card].negative_prompt
    if shift is not None:
        scheduler = type(pipeline.scheduler)
        key = next(key for key in ("flow_shift", "shift") if key in pipeline.scheduler.config)
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **{key: shift})
    noise = {
        name: pair_noise((1, *shape), seed=seed_of_stream(0, name), pair_ids=torch.tensor([7]), draw=0)
        for name, shape in family.stream_shapes(*kind.size).items()
    }
    noise = noise if kind.hears else noise["video"]
    with torch.no_grad(), starting(kind, pipeline, noise) as begun, as_sampled(kind, pipeline):
        theirs = pipeline(
            prompt=PROMPT,
            negative_prompt=negative,
            output_type="latent",
            generator=torch.Generator().manual_seed(seed_of(noise)),
            **kind.call,
            **begun,
            **told,
        )
    theirs = latents_of(kind, theirs, noise)
    handed = []
    call = type(pipeline).__call__

    def recorded(self, *arguments, **keywords):
        handed.append((keywords, self.scheduler.config))
        return call(self, *arguments, **keywords)

    monkeypatch.setattr(type(pipeline), "__call__", recorded)
    config = SimpleNamespace(evaluate=EvaluateConfig(), train=SimpleNamespace(precision="fp32"))
    transformer = getattr(pipeline, family.transformer_folder)
    data = HeldOut(family, kind)
    said = []
    with heard_by(SimpleNamespace(moved=said.append)):
        ours = sample_latents(config, family, transformer, data, [(0, 0)], CPU)
    steps = told["num_inference_steps"]
    assert said == [f"denoising step {number} of {steps}" for number in range(1, steps + 1)]
    # Text that is trimmed here and masked there may round products otherwise.
    for made, expected in zip(by_stream(ours).values(), by_stream(theirs).values(), strict=True):
        off = (made - expected).norm() / expected.norm()
        assert torch.equal(made, expected) or (kind.masks_text and off < 1e-4)
    for (
        keywords,
        scheduler,
    ) in handed:  # none of Wan, whose loop is ours: it encodes no image beside the transformer
        assert {name: keywords[name] for name in told} == told
        assert shift is None or scheduler[key] == shift


def split(told: dict) -> tuple[dict, float | None]:
    """(what the pipeline is called with, the shift of its scheduler) of `Kind.told`."""
    return {name: value for name, value in told.items() if name != "shift"}, told.get("shift")


def test_every_card_has_a_kind():
    cards = [card for family in families() for card in family_class(family).cards]
    assert set(cards) == {kind.card for kind in KINDS.values()} and len(set(cards)) == len(cards)


def test_a_family_has_a_card_and_what_is_set_goes_before_it(saved):
    for kind in KINDS.values():
        (told, shift), family = split(kind.told), kind.open(saved(kind.save))
        negative = family.cards[kind.card].negative_prompt
        assert negative.startswith(kind.negative) and bool(negative) == bool(kind.negative)
        found = sample_settings(EvaluateConfig(), family.sampling((480, 832)))
        assert found.steps == told["num_inference_steps"] and found.flow_shift == shift
        assert found.guidance_scale_2 == told.get("guidance_scale_2")
        given = EvaluateConfig(sampling_steps=3, guidance_scale=2.5, flow_shift=1.5, negative_prompt="blurry")
        found = sample_settings(given, family.sampling((720, 1280)))
        assert (found.steps, found.guidance_scale, found.flow_shift) == (3, 2.5, 1.5)
        assert found.guidance_scale_2 == (2.5 if "guidance_scale_2" in told else None)  # as WanPipeline
        assert found.negative_prompt == "blurry"
        without = given.model_copy(update={"guidance_scale": 1.0})
        assert (
            sample_settings(without, family.sampling((720, 1280))).negative_prompt == ""
        )  # which nothing would read


@pytest.mark.parametrize(
    ("size", "shift"), [((480, 832), 3.0), ((832, 480), 3.0), ((720, 1280), 5.0), ((960, 960), 5.0)]
)
def test_wan_2_1s_shift_follows_the_size(size, shift, saved):
    kind = KINDS["wan 2.1 t2v"]
    family = kind.open(saved(kind.save))
    assert sample_settings(EvaluateConfig(), family.sampling(size)).flow_shift == shift


@pytest.mark.parametrize(
    ("key", "family"), [("guidance_scale_2", "wan"), ("guidance_scale_2", "ltx"), ("flow_shift", "cogvideox")]
)
def test_a_setting_that_a_model_does_not_take_is_refused(tmp_path, key, family):
    config = write_config(tmp_path / "c.yaml", tmp_path / "out", "toy")
    overrides = [f"evaluate.{key}=3", f"model.family={family}"]
    overrides += [] if family == "wan" else ["model.encoders=pipeline", "model.path=a/b"]
    with pytest.raises(InputError, match=rf"evaluate.{key} is for .*leave it out"):
        load_config(config, overrides)


@pytest.mark.usefixtures("eager_kernels", "undrawn")
def test_a_negative_prompt_is_prepared_and_results_of_other_settings_are_told_apart(world, tmp_path):
    config = write_config(tmp_path / "c.yaml", tmp_path / "out", world / "tiny_wan")
    shutil.copytree(world / "out/prepared", tmp_path / "out/prepared")
    shutil.copytree(world / "out/toy", tmp_path / "out/toy")
    index = tmp_path / "out/prepared/train/index.json"
    before = index.read_text()
    run_pgdpo("train", config)
    run_pgdpo("evaluate", config)
    first = json.loads((tmp_path / "out/dpo/results.json").read_text())
    other = ['evaluate.negative_prompt="a red square: it\'s #1"']
    reader = PreparedPairs(tmp_path / "out/prepared/held_out")  # as a training that goes on
    with pytest.raises(
        InputError, match=r"evaluate.negative_prompt is .a red square.*pgdpo prepare"
    ) as refused:
        run_pgdpo("evaluate", config, *other)
    typed = re.search(r"`pgdpo prepare CONFIG (.*?)`", str(refused.value))[1]
    unlike = write_config(tmp_path / "unlike.yaml", tmp_path / "out", world / "tiny_wan", evaluate=WITHOUT)
    run_pgdpo("prepare", unlike, *shlex.split(typed))  # whatever else the file says
    run_pgdpo("prepare", unlike, "evaluate.negative_prompt=nothing would read this")
    run_pgdpo("prepare", config, "evaluate.negative_prompt=a later one")
    files = [json.loads(text)["text"]["files"] for text in (before, index.read_text())]
    assert files[0] == files[1]  # what a run trains on does not follow from how clips are sampled
    held_out = PreparedPairs(reader.folder)
    assert held_out.index["negative"]["written"] == ["a red square: it's #1", "a later one"]
    assert held_out.fingerprint == reader.fingerprint
    assert all(torch.isfinite(reader.text(row["prompt"])["prompt"]).all() for row in reader.rows)
    run_pgdpo("evaluate", config, *other)
    second = json.loads((tmp_path / "out/dpo/results.json").read_text())
    assert first["settings"]["held_out"] == second["settings"]["held_out"]
    assert first["settings"]["sampling"] != second["settings"]["sampling"]
    assert second["settings"]["sampling"]["4x16x16"]["negative_prompt"] == "a red square: it's #1"
    assert "a red square" in (tmp_path / "out/dpo/report.html").read_text()
    assert evaluated_steps(tmp_path / "out/dpo", first) == ([], 1)  # they are not compared


@given(prompt=st.text(st.characters(exclude_categories=["Cs"])))
def test_what_is_to_be_typed_is_read_as_the_negative_prompt(prompt):
    first, second = shlex.split(_asking_for(SampleSettings(1, 6.0, negative_prompt=prompt)))
    key, _, value = first.partition("=")
    assert (key, yaml.safe_load(value)) == ("evaluate.negative_prompt", prompt)
    assert second == "evaluate.guidance_scale=6.0"
