"""`pgdpo reference`: computed once, resumed, found again by its key alone."""

import shutil

import pytest
import torch

from pgdpo.checking import run_check
from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.reference.store import joined, read_rows
from pgdpo.training import reference_errors
from pgdpo.training.opening import open_pairs
from pgdpo.training.references import errors_key
from tests.worlds import run_pgdpo


def rows_of(config_file) -> dict:
    """(pair, draw) -> sums, of the only key that there is."""
    (folder,) = (config_file.parent / "out" / "reference").iterdir()
    rows = joined([read_rows(folder)])
    return dict(zip(rows.items(), rows.sums, strict=True))


@pytest.fixture
def computed(config_file):
    run_pgdpo("reference", config_file, "train.cached_draws=1")
    return config_file


def test_a_key_of_where_the_model_lies_is_none_of_the_errors(config_file):
    """The weights' digest speaks for them: errors from before such a key came are found again."""
    config = load_config(config_file)
    key = errors_key(config, open_family(config.model), open_pairs(config, "train"))
    assert not {f"model.{name}" for name in ("path", "revision", "transformer")} & key.keys()


def test_an_interrupted_pass_goes_on_where_it_stopped(computed, monkeypatch):
    straight = rows_of(computed)
    shutil.rmtree(computed.parent / "out" / "reference")
    calls = []
    original = reference_errors._errors

    def counted(batch, *rest):
        if len(calls) == 4:
            raise RuntimeError("killed")
        calls.append(batch["pair_ids"].tolist())
        return original(batch, *rest)

    monkeypatch.setattr(reference_errors, "_errors", counted)
    monkeypatch.setattr(reference_errors, "WRITE_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="killed"):
        run_pgdpo("reference", computed, "train.cached_draws=1")
    done = {pair for batch in calls for pair in batch}
    assert {pair for pair, _ in rows_of(computed)} == done and len(done) == 8
    calls.clear()
    run_pgdpo("reference", computed, "train.cached_draws=1")
    assert not done & {pair for batch in calls for pair in batch} and len(calls) == 2
    resumed = rows_of(computed)
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[item], straight[item]) for item in straight)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("model.attention=xformers", "model.attention"),
        ("train.seed=7", "train.seed"),
        ("train.precision=bf16", "train.precision"),
        ("diffusion.shift=3", "diffusion.shift"),
        ("data.caption_dropout=0.1", "data.caption_dropout"),
        ("model.path={other}", "reference weights"),
    ],
)  # fmt: skip
def test_errors_of_another_reference_are_refused(computed, tmp_path, change, key):
    from diffusers import WanTransformer3DModel

    other = tmp_path / "other"
    shutil.copytree(load_config(str(computed)).model.path, other)
    if "{other}" in change:
        transformer = WanTransformer3DModel.from_pretrained(other / "transformer")
        transformer.proj_out.bias.data += 1e-3
        transformer.save_pretrained(other / "transformer")
    with pytest.raises(InputError) as refused:
        run_pgdpo(
            "train", computed, "train.reference=cached", "train.cached_draws=1", change.format(other=other)
        )
    message = str(refused.value)
    assert f"`{key}`: found " in message and "wanted" in message and "pgdpo reference CONFIG" in message


def test_the_check_finds_them_too(computed):
    cached = ["train.reference=cached", "train.cached_draws=1"]
    assert run_check(str(computed), cached).problems == []
    (problem,) = run_check(str(computed), [*cached, "train.seed=7"]).problems
    assert problem.key == "train.reference" and "`train.seed`: found 0, wanted 7" in problem.what


def test_what_is_missing_or_damaged_is_named(computed):
    cached = ("train", computed, "train.reference=cached")
    with pytest.raises(
        InputError, match="12 of 24 errors .12 pairs x train.cached_draws 2. are not computed"
    ):
        run_pgdpo(*cached, "train.cached_draws=2")
    (shard,) = (computed.parent / "out" / "reference").glob("*/*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(InputError, match=f"{shard}: its SHA-256"):
        run_pgdpo(*cached, "train.cached_draws=1")
    shutil.rmtree(shard.parent.parent)
    with pytest.raises(InputError, match="are not computed yet"):
        run_pgdpo(*cached, "train.cached_draws=1")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("objective={name: dspo}", "objective `dspo` needs its predictions"),
        ("diffusion.inversion_steps=2", "diffusion.inversion_steps is set"),
    ],
)
def test_what_needs_more_than_errors_is_refused_at_once(config_file, change, named):
    with pytest.raises(InputError, match=named):
        run_pgdpo("train", config_file, "train.reference=cached", change)
