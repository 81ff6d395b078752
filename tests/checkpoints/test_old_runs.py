"""Runs, data and cached errors of earlier versions: known again where nothing changed, told apart where it did."""

import shutil
from types import SimpleNamespace

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from pgdpo.checkpoints.identity import rows_hash, told_rounded
from pgdpo.checkpoints.record import with_new_names, without_old_defaults
from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.reference.store import folder_of
from pgdpo.training.references import errors_key
from tests.models.families import FAMILIES
from tests.worlds import write_config

ROWS = [
    {"id": "a", "prompt": "a dog", "weight": 0.5, "probability": 0.9, "scores": {"x": [1, 0]}},
    {"id": "b", "prompt": "", "group": 3},
]


def test_the_hash_of_rows_outlives_new_columns():
    """The first digest is what the version before the column `gap_frequency` made of these rows."""
    assert rows_hash(SimpleNamespace(rows=ROWS, shares=None)) == "0ca04f1deb2a"
    newer = [ROWS[0] | {"gap_frequency": 0.2}, ROWS[1]]
    assert rows_hash(SimpleNamespace(rows=newer, shares=None)) != "0ca04f1deb2a"


def test_defaults_of_before_the_cards_are_nobodys_settings(capfd):
    old = {"name": "x", "evaluate": {"sampling_steps": 50, "guidance_scale": 5.0, "seed": 3}}
    assert without_old_defaults(old) == {"name": "x", "evaluate": {"seed": 3}}
    assert without_old_defaults({"evaluate": {"sampling_steps": 16, "guidance_scale": 2.0}})["evaluate"] == {
        "sampling_steps": 16,
        "guidance_scale": 2.0,
    }
    new = {"evaluate": {"sampling_steps": 50, "guidance_scale": 5.0, "flow_shift": None}}
    assert without_old_defaults(new) == new


@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler])
def test_a_wan_folder_of_any_scheduler_opens_and_says_what_it_computes(kind, saved, tmp_path):
    """A dynamic shift asks for the number of tokens; what the embedder computes in bf16 changed under each of them."""
    folder = shutil.copytree(saved(FAMILIES["wan"].save), tmp_path / "wan")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    options = flow if kind is UniPCMultistepScheduler else {}
    kind(use_dynamic_shifting=True, **options).save_pretrained(folder / "scheduler")
    family = FAMILIES["wan"].open(folder)
    assert family.whole_timesteps == (kind is UniPCMultistepScheduler)
    for precision, kept in (("bf16", True), ("fp32", False)):
        config = SimpleNamespace(model=family.model, train=SimpleNamespace(precision=precision))
        assert ("time embedder" in str(told_rounded(config))) == kept


@pytest.mark.parametrize(("family", "apart"), [("hunyuan_video", True), ("wan", False)])
def test_errors_of_trimmed_and_of_padded_text_have_two_keys(family, apart, saved, tmp_path, world):
    """Pairs that are computed alone have their text trimmed, which rounds otherwise."""
    folder = saved(FAMILIES[family].save)
    path = write_config(tmp_path / "c.yaml", tmp_path / "out", folder)
    changes = [f"model.family={family}", "model.encoders=pipeline", "train.reference=cached"]
    keys = []
    for pairs in (1, 2, 4):
        config = load_config(
            path, [*changes, f"train.micro_batch_groups={pairs}", "train.global_batch_groups=4"]
        )
        data = SimpleNamespace(files_fingerprint="the same", kind="pair")
        keys.append(errors_key(config, open_family(config.model), data))
    assert keys[1] == keys[2] and (keys[0] != keys[1]) == apart


def test_errors_are_known_by_the_key_that_they_had_before_families_had_their_own_settings(
    saved, tmp_path, world
):
    """Each key had then an entry for the settings of every family, empty in most; the digest is of then."""
    config = load_config("quickstart.yaml", ["train.reference=cached"])
    data = SimpleNamespace(files_fingerprint="the same", kind="pair")
    key = errors_key(config, open_family(config.model), data)
    own = {"reference weights", "told_rounded"}  # of the weights
    fixed = {name: value for name, value in key.items() if name not in own}
    assert folder_of(tmp_path, fixed).name == "417a2ed8a668"
    path = write_config(tmp_path / "c.yaml", tmp_path / "out", saved(FAMILIES["ltx"].save))
    names = []
    for changes in ([], ["model.keyframes=[0]"]):
        config = load_config(path, ["model.family=ltx", "model.encoders=pipeline", *changes])
        names.append(
            {name for name in errors_key(config, open_family(config.model), data) if name[:6] == "model."}
        )
    assert names[0] == {name for name in key if name[:6] == "model."}
    assert names[1] - names[0] == {"model.keyframes"}


@pytest.mark.parametrize(("family", "scale"), [("hunyuan_video", 1), ("wan", None)])
def test_npo_is_held_against_the_cards_guidance(family, scale, tmp_path, world):
    """HunyuanVideo's card has none, so that one call a step would be answered by either branch in turn."""
    path = write_config(tmp_path / "c.yaml", tmp_path / "out", world / "tiny_wan")
    changes = ["objective={name: npo}", f"model.family={family}", "model.encoders=pipeline"]
    if scale is None:
        load_config(path, [*changes, "evaluate.guidance_scale=null"])
        return
    with pytest.raises(InputError, match="guidance_scale is 1 by the model's card"):
        load_config(path, [*changes, "evaluate.guidance_scale=null"])


def test_a_record_of_before_keys_were_renamed_is_read_under_the_names_of_now(tmp_path, world):
    """And a configuration that has an old name is told the new one."""
    path = write_config(tmp_path / "c.yaml", tmp_path / "out", world / "tiny_wan")
    changes = ["train.micro_batch_groups=2", "train.group_batching=split"]
    record = load_config(path, changes).model_dump(mode="json")
    old = {"global_batch_groups": "global_batch_pairs", "micro_batch_groups": "micro_batch_pairs"}
    old["group_batching"] = "pair_batching"
    before = record | {"train": {old.get(key, key): value for key, value in record["train"].items()}}
    assert before["train"]["pair_batching"] == "split" and with_new_names(before) == record
    assert with_new_names(record) == record
    for new, name in old.items():
        with pytest.raises(InputError, match=f"`train.{name}` is called `train.{new}` now"):
            load_config(path, [f"train.{name}=1"])
