"""The lists of `patch/known.py` against what diffusers has: no class is forgotten, none is there that is gone."""

import importlib
import inspect
import pkgutil

import pytest
from torch import nn

from pgdpo_kernels import apply_to
from pgdpo_kernels.patch.known import FAMILIES, REASONS

pytest.importorskip("diffusers")
from diffusers.models import transformers  # noqa: E402
from diffusers.models.modeling_utils import ModelMixin  # noqa: E402

# Transformers that diffusers calls models although they are none of its `ModelMixin`.
BARE = {"DualTransformer2DModel", "TransformerSpatioTemporalModel"}
GONE: set[str] = set()  # of an older diffusers that we support, not of the newest


def models() -> dict[str, type]:
    """Every model class that a file of `diffusers.models.transformers` defines."""
    found = {}
    for file in pkgutil.iter_modules(transformers.__path__):
        module = importlib.import_module(f"{transformers.__name__}.{file.name}")
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__ and (issubclass(kind, ModelMixin) or name in BARE):
                found[name] = kind
    return found


def test_every_transformer_stands_in_one_of_the_lists():
    assert set(FAMILIES) | set(REASONS) == set(models()) | GONE
    assert not set(FAMILIES) & set(REASONS)


@pytest.mark.parametrize("name", sorted(REASONS))
def test_a_reason_is_told(name):
    """By an instance without layers: nothing of it is looked at."""
    model = models()[name].__new__(models()[name])
    nn.Module.__init__(model)
    assert REASONS[name][-1].isalnum() and len(REASONS[name].split()) > 4, (
        "a fragment that names the obstacle"
    )
    with pytest.warns(UserWarning, match=f"^{name} is left as it is: ") as told:
        assert apply_to(model) == []
    assert str(told[0].message).endswith(REASONS[name])
    with pytest.raises(TypeError) as refused:
        apply_to(model, strict=True)
    assert str(refused.value) == f"cannot patch {name}: {REASONS[name]}"


@pytest.mark.parametrize("file", sorted(set(FAMILIES.values())))
def test_every_family_knows_this_diffusers(file):
    family = importlib.import_module(f"pgdpo_kernels.patch.{file}")
    from pgdpo_kernels.patch.replace import check_sources

    check_sources(family.SOURCES)
