"""The licence of the weights that a run began with: known by their hub id, said, and in the export's card."""

import huggingface_hub
import pytest

from pgdpo.checkpoints.model_card import _terms
from pgdpo.config import ModelConfig, families, family_class
from pgdpo.config.families import licence_of, licence_said
from pgdpo.config.read import load_config, shipped_configs
from tests.worlds import run_pgdpo

# As the models' own cards on the hub have `license`.
LICENSES = {
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": ("wan", "apache-2.0"),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": ("wan", "apache-2.0"),
    "zai-org/CogVideoX-2b": ("cogvideox", "apache-2.0"),
    "THUDM/CogVideoX-2b": ("cogvideox", "apache-2.0"),
    "THUDM/CogVideoX-5b-I2V": ("cogvideox", "other"),
    "zai-org/CogVideoX1.5-5B": ("cogvideox", "other"),
    "hunyuanvideo-community/HunyuanVideo-I2V": ("hunyuan_video", "other"),
    "Lightricks/LTX-Video-0.9.7-dev": ("ltx", "other"),
    "me/my-wan": ("wan", None),
}


@pytest.mark.parametrize("path", LICENSES)
def test_published_weights_have_the_licence_of_their_card(path):
    family, license_id = LICENSES[path]
    known = licence_of(family, path)
    assert license_id == (known and known.license)
    card = huggingface_hub.ModelCardData(**_terms(ModelConfig(family=family, path=path))).to_dict()
    assert card["base_model"] == path and card.get("license") == license_id
    assert (license_id == "other") == ("license_name" in card)  # as the hub asks of one without an id
    assert known is None or card["license_link"] == known.link and known.link in licence_said(family, path)


def test_every_shipped_configuration_has_one():
    for name in set(shipped_configs()) - {"study.yaml", "study_selection.yaml"}:
        model = load_config(name).model
        assert licence_of(model.family, model.path) is not None, name
    assert all(family_class(name).licences for name in families())


@pytest.mark.usefixtures("eager_kernels")
def test_the_card_of_weights_of_unknown_origin_says_so(config_file):
    run_pgdpo("train", config_file, "train.steps=1")
    run_pgdpo("export", config_file)
    text = (config_file.parent / "out" / "dpo" / "export" / "README.md").read_text(encoding="utf-8")
    assert "| licence | that of the weights that you started from |" in text
    assert "license" not in huggingface_hub.ModelCard(text).data.to_dict()
