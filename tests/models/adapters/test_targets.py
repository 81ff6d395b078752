"""Which layers target_modules names: peft decides what is adapted, and what is refused says which name is meant."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgdpo.config import AdapterConfig
from pgdpo.messages.console import say_once
from pgdpo.messages.errors import InputError
from pgdpo.models.adapters.adapter import add_adapter
from pgdpo.models.adapters.targets import check_targets, linear_layers
from tests.models.families import FAMILIES
from tests.worlds import run_pgdpo


@pytest.fixture(scope="module")
def family(saved):
    return lambda name: FAMILIES[name].open(saved(FAMILIES[name].save))


def transformer_of(family):
    with torch.device("meta"):
        return family.from_architecture(family.architecture())


def adapted_by_peft(family, targets):
    """Names of the modules that peft gives an adapter; None where it refuses."""
    transformer = transformer_of(family)
    try:
        with torch.device("meta"):
            add_adapter(transformer, AdapterConfig(rank=1, target_modules=targets), seed=0)
    except InputError:
        return None
    names = (name for name, _ in transformer.named_modules() if name.endswith(".lora_A"))
    return {name.removesuffix(".lora_A") for name in names}


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_what_is_allowed_is_what_peft_adapts(family, name, data):
    """Ends of the names of any modules, and some with a letter more: allowed exactly where they adapt linear layers."""
    transformer = transformer_of(family(name))
    modules = [module for module, _ in transformer.named_modules() if module]
    linear = set(linear_layers(transformer))
    words = data.draw(st.sampled_from(modules)).split(".")
    target = ".".join(words[data.draw(st.integers(0, len(words) - 1)) :]) + data.draw(
        st.sampled_from(["", "", "z"])
    )
    alone = adapted_by_peft(family(name), [target])
    fits = alone is not None and alone <= linear
    targets = data.draw(st.permutations(["to_q", target]))
    try:
        check_targets(family(name), AdapterConfig(target_modules=targets))
    except InputError as error:
        assert not fits and f"`{target}`" in str(error)
    else:
        assert fits and adapted_by_peft(family(name), targets) <= linear


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ["to_q", "to_z"],
            r"called `to_z` \(the nearest: `to_[qkv]`.*; allowed are ends of their names: .*attn1.to_q",
        ),
        (
            ["q", "k"],
            r"`q` \(the original repository's name of `attn1.to_q`, `attn2.to_q`\), `k` \(the original",
        ),
        (["ffn.0"], r"`ffn.0` \(the original repository's name of `ffn.net.0.proj`\)"),
        (["to_out"], r"`to_out` \(the nearest: .*`to_out.0`"),
        (
            ["to_q", "0"],
            r"`0` is also `blocks.0`, a WanTransformerBlock, .* write what is meant of .*to_out.0",
        ),
    ],
)
def test_names_that_are_none(family, targets, message):
    with pytest.raises(InputError, match=message) as refused:
        check_targets(family("wan"), AdapterConfig(target_modules=targets))
    assert str(refused.value).startswith(f"model.adapter.target_modules is {targets}: ")


def test_a_convolution_is_not_adapted_by_the_way(family):
    with pytest.raises(InputError, match="`proj` is also `patch_embed.proj`, a Conv2d"):
        check_targets(family("cogvideox"), AdapterConfig(target_modules=["proj"]))


def test_layers_outside_the_blocks_are_said(family, capsys):
    say_once.cache_clear()
    check_targets(family("hunyuan_video"), AdapterConfig(target_modules=["to_q"]))
    said = " ".join(capsys.readouterr().out.split())
    assert "outside them, context_embedder.token_refiner.refiner_blocks.0.attn.to_q" in said


def test_train_and_check_say_it_with_the_same_words_before_any_weight(config_file, monkeypatch):
    from pgdpo.checking import run_check
    from pgdpo.models.families.wan import Wan

    monkeypatch.setattr(Wan, "load_transformer", lambda *_, **__: pytest.fail("weights were loaded"))
    override = "model.adapter.target_modules=[to_q,to_z]"
    with pytest.raises(InputError) as refused:
        run_pgdpo("train", config_file, override)
    [problem] = run_check(str(config_file), [override]).problems
    assert f"{problem.what}; allowed are {problem.allowed}" == str(refused.value)
    with pytest.raises(InputError, match=re.escape("`model.adapter.target_modules` is []")):
        run_pgdpo("train", config_file, "model.adapter.target_modules=[]")
