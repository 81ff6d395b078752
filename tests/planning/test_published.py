"""Planning for the shipped configurations needs no network: the published models' sizes are known."""

import threading

import pytest

from pgdpo.config.read import load_config
from pgdpo.files import reach
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.planning.costs.meta import meta_policy, sizes
from pgdpo.planning.published import open_to_plan
from tests.worlds import run_pgdpo

# Parameters of the transformers, as their authors publish them (to the digits that they give).
PARAMETERS = {
    "wan21_1.3b": 1.42e9,
    "wan21_14b": 14.29e9,
    "wan21_i2v_14b": 16.4e9,
    "wan21_flf2v_14b": 16.4e9,  # as image-to-video, and 514 positions
    "wan22_a14b": 14.29e9,
    "wan22_i2v_a14b": 14.29e9,
    "wan22_ti2v_5b": 5.0e9,
    "hunyuan_video": 12.82e9,
    # Ours: these are published as 13B. One takes no guidance, which leaves out an embedding, and more channels.
    "hunyuan_video_i2v": 12.82e9,
    "hunyuan_video_i2v_33ch": 12.81e9,
    "cogvideox_2b": 1.69e9,
    "cogvideox_5b": 5.57e9,
    "cogvideox_5b_i2v": 5.57e9,
    "cogvideox15_5b": 5.57e9,
    "cogvideox15_5b_i2v": 5.57e9,
    "ltx_video": 1.92e9,
    "ltx_video_i2v": 1.92e9,
    "ltx_video_keyframes": 1.92e9,
    "ltx_video_13b": 13.04e9,
    # Ours, of the transformer alone: the first is published as 19B.
    "ltx2": 18.88e9,
    "ltx2_3": 18.99e9,
    "ltx2_5": 18.99e9,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    # Imported first: read with the variable set, the constant would stay so in the tests after this.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_published_sizes(name):
    config = load_config(f"{name}.yaml", ["model.adapter=null"])
    family, note = open_to_plan(config.model)
    assert "was not reached" in note
    found = sum(size.numel for size in sizes(meta_policy(family, config)))
    assert found == pytest.approx(PARAMETERS[name], rel=0.005)
    for size in config.data.sizes:
        family.check_size(*size)


def test_nothing_but_planning_takes_them():
    """No weights stand there: training needs the model itself."""
    with pytest.raises(InputError, match="cannot be read"):
        open_family(load_config("wan21_1.3b.yaml").model)
    with pytest.raises(InputError, match="cannot be read"):
        open_to_plan(load_config("wan21_1.3b.yaml", ["model.path=nobody/nothing"]).model)


def test_the_command(capfd):
    run_pgdpo("plan", "wan21_1.3b.yaml", "--gpus", 8, "--gpu", "H100")
    shown = " ".join(capfd.readouterr().out.split())
    assert "Wan2.1-T2V-1.3B-Diffusers was not reached" in shown


@pytest.fixture
def online(monkeypatch):
    """Until somebody finds that the hub does not answer."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    reach.reach.cache_clear()
    yield
    reach.reach.cache_clear()


def test_a_hub_that_does_not_answer_is_asked_once(online, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(reach, "answers", lambda address: bool(asked.append(address)))
    config = load_config("wan21_1.3b.yaml")
    for _ in range(2):
        assert "was not reached" in open_to_plan(config.model)[1]
    assert len(asked) == 1
    said = capsys.readouterr().out
    assert f"looking for {config.model.path} on " in said and "does not answer" in said


@pytest.mark.parametrize("ends", ["silent", "broken", "well"])
def test_an_answer_is_not_waited_for_longer_than_said(online, monkeypatch, ends):
    """As of a name server that drops what it is asked, whatever the time limit of the request."""
    end = threading.Event()

    class Session:
        def head(self, address, timeout):
            if ends == "broken":
                raise ConnectionError
            return ends == "well" or end.wait(60)

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr(reach, "SECONDS", 0.1 if ends == "silent" else 30.0)
    assert reach.answers("https://x.invalid") == (ends == "well")
    end.set()
