"""`model.family: auto`: a pipeline is of the family that its index names; all else is refused for what it is."""

import json
import pickle
import subprocess
import sys

import diffusers
import pytest

from pgdpo import plugins
from pgdpo.config import ModelConfig, families, family_class
from pgdpo.config.families import ADDING, family_of
from pgdpo.config.read import inspect_config, load_config, shipped_configs
from pgdpo.files import reach
from pgdpo.files.pipeline import ASSETS, pipeline_at
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from tests.models.families import KINDS, PIPELINES
from tests.models.weights.fake_hub import REPOSITORY, FakeHub, asked_of

CLASSES = [name for name in dir(diffusers) if name.endswith("Pipeline")]
# What users may take for one of ours, by diffusers' classes.
NEIGHBOURS = {
    "LTX2ConditionPipeline": "LTX-2 from keyframes",
    "LTX2HDRPipeline": "LTX-2 in HDR",
    "LTXLatentUpsamplePipeline": "upsampler",
    "HunyuanVideo15Pipeline": "HunyuanVideo 1.5",
    "HunyuanVideo15ImageToVideoPipeline": "HunyuanVideo 1.5",
    "HunyuanVideoFramepackPipeline": "FramePack",
    "HunyuanSkyreelsImageToVideoPipeline": "SkyReels-V1",
    "SkyReelsV2Pipeline": "SkyReels-V2",
    "WanVACEPipeline": "Wan VACE",
    "WanAnimatePipeline": "Wan Animate",
    "CogVideoXFunControlPipeline": "CogVideoX-Fun Control",
    "CosmosTextToWorldPipeline": "Cosmos",
    "MochiPipeline": "Mochi 1",
    "AllegroPipeline": "a AllegroPipeline",
    "Kandinsky5T2VPipeline": "Kandinsky 5",
    "StableDiffusionXLPipeline": "a StableDiffusionXLPipeline",
}


@pytest.mark.quick
def test_every_pipeline_of_diffusers_is_served_or_refused_by_name():
    served = {name: family for family in families() for name in family_class(family).pipelines}
    assert served.keys() <= set(CLASSES) and len(CLASSES) > 200
    for name in CLASSES:
        if name in served:
            assert family_of(name, "here") == served[name]
            continue
        with pytest.raises(InputError, match=rf"model.path is 'here': it is .*\b{name}\b") as refused:
            family_of(name, "here")
        assert all(family in str(refused.value) for family in families())
    assert ADDING.is_file()


@pytest.mark.quick
def test_what_systems_leave_beside_a_file_is_no_family(monkeypatch, tmp_path):
    """macOS writes `._wan.py` into archives and onto foreign disks, Emacs links `.#wan.py`."""
    for name in ("__init__", "wan", "._wan", ".#wan", "wan copy"):
        (tmp_path / "families").mkdir(exist_ok=True)
        (tmp_path / "families" / f"{name}.py").touch()
    monkeypatch.setattr(plugins, "__file__", str(tmp_path / "plugins.py"))
    assert plugins.found.__wrapped__("families") == ("wan",)


@pytest.mark.quick
@pytest.mark.parametrize("family", families())
def test_a_configuration_goes_through_a_pickle(family, config_file):
    """As those do that are handed to another process."""
    keys = [f"model.family={family}", "model.path=x", "model.encoders=pipeline", "evaluate.fps=null"]
    config = load_config(config_file, keys)
    for part in (config, *config.parts):
        found = pickle.loads(pickle.dumps(part))
        assert (
            found == part and type(found) is type(part) and type(found.model) is family_class(family).settings
        )


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_a_neighbour_is_said_for_what_it_is(tmp_path, name):
    assert name in CLASSES
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    for family in ("auto", "wan"):
        with pytest.raises(InputError, match=NEIGHBOURS[name]):
            open_family(ModelConfig(family=family, path=str(tmp_path)))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_real_pipeline_is_of_its_family(name, saved):
    kind = KINDS[name]
    model = ModelConfig(path=str(saved(kind.save)))
    assert model.family == "auto" and open_family(model).model.family == kind.family
    named = ModelConfig(family=kind.family, path=model.path)
    assert open_family(named).model.model_dump() == open_family(model).model.model_dump()


def write(folder, file, content=None):
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("" if content is None else json.dumps(content))
    return folder


PART = {"pretrained_model_name_or_path": "Wan-AI/Wan2.1-T2V-14B-Diffusers"}
OTHERS = {
    "a file": (lambda at: write(at, "wan.safetensors") / "wan.safetensors", "it is a file, .*model.transformer"),
    "no folder": (lambda at: at / "gone", "there is no such folder"),
    "nothing": (lambda at: at, "no model_index.json in"),
    "a checkpoint": (lambda at: write(at, "ltxv.safetensors"), "it has ltxv.safetensors and no model_index.json"),
    "an original": (lambda at: write(at, "config.json", {"_class_name": "WanModel"}), "it has config.json and no"),
    "a LoRA": (lambda at: write(at, "pytorch_lora_weights.safetensors"), "it is a LoRA: .*model.adapter.init"),
    "a transformer": (
        lambda at: write(at, "config.json", {"_class_name": "WanTransformer3DModel"}),
        "a transformer alone, a WanTransformer3DModel: .*model.transformer",
    ),
    "an export": (
        lambda at: write(at, "transformer/config.json", {"_class_name": "LTXVideoTransformer3DModel"}),
        "a transformer alone, a LTXVideoTransformer3DModel",
    ),
    "a modular one": (
        lambda at: write(
            at, "modular_model_index.json", {"_class_name": "WanModularPipeline", "vae": ["a", "B", PART]}
        ),
        "modular pipeline, a WanModularPipeline .*Wan-AI/Wan2.1-T2V-14B-Diffusers",
    ),
    "a broken index": (lambda at: write(at, "model_index.json"), "model_index.json is to name a class .*copy it"),
    "an index without": (lambda at: write(at, "model_index.json", []), "model_index.json is to name a class"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_pipeline_is_said_for_what_it_is(name, tmp_path):
    build, words = OTHERS[name]
    with pytest.raises(InputError, match=words):
        pipeline_at(str(build(tmp_path)))


def test_the_name_stands_resolved_and_the_path_has_its_line(config_file, tmp_path):
    path = write(tmp_path / "sdxl", "model_index.json", {"_class_name": "StableDiffusionXLPipeline"})
    loaded = load_config(config_file, ["model.family=auto"])
    assert loaded.model.family == "wan" == loaded.model_dump()["model"]["family"]
    inspected = inspect_config(config_file, [f"model.path={path}", "train.steps=0", "model.family=auto"])
    assert [problem.key for problem in inspected.problems] == ["model.path", "train.steps"]
    with pytest.raises(InputError, match="model.family is `ltx`, .* holds a WanPipeline, which is of `wan`"):
        open_family(ModelConfig(family="ltx", path=str(ASSETS / "toy_base")))


def test_models_whose_architecture_ships_need_no_network():
    """Every shipped configuration, with `auto` in place of its family: neither torch nor the hub is imported."""
    script = (
        "import sys\n"
        "from pgdpo.config.read import load_config\n"
        "for name in sys.argv[1:]:\n"
        "    named, told = (load_config(name, [*more]).model.family for more in ((), ['model.family=auto']))\n"
        "    assert named == told, (name, named, told)\n"
        "assert not {'torch', 'diffusers', 'huggingface_hub'} & set(sys.modules)\n"
    )
    names = [name for name in shipped_configs() if not name.startswith("study")]
    subprocess.run([sys.executable, "-c", script, *names], check=True, timeout=120)


@pytest.fixture
def server(saved):
    server = FakeHub()
    server.commit(saved(KINDS["ltx"].save), "main", "v1")
    yield server
    server.close()


def test_of_a_hub_id_the_small_files_are_asked_for_once(server, tmp_path):
    with asked_of(server.endpoint, str(tmp_path)):
        assert pipeline_at(REPOSITORY, "v1") == "LTXPipeline"
        before = server.asked.copy()
        assert not any(name.endswith(".safetensors") for _, name in before)
        pipeline_at(REPOSITORY, "v1")
        assert server.asked == before


def test_a_hub_that_is_not_reached_asks_for_the_family(monkeypatch, config_file):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reach.reach.cache_clear()
    with pytest.raises(
        InputError, match=r"model.path is 'nobody/none': its model_index.json, .*set model.family"
    ):
        load_config(config_file, ["model.path=nobody/none", "model.family=auto"])
    assert load_config(config_file, ["model.path=nobody/none", "model.family=wan"]).model.family == "wan"
