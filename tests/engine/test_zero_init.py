"""Models loaded under ZeRO-3: the same tensors as ever, and never all of them on a rank."""

import deepspeed
import pytest
import torch
from safetensors.torch import load_file, save_file

from pgdpo.engine.engine import start_distributed
from pgdpo.engine.zero.load import WEIGHTS, load_sharded
from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.families.wan import WanSettings
from tests.engine import sharded_build
from tests.worlds import save_tiny_wan

DEEPSPEED = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


def load(folder, dtype=torch.float32, seed=None):
    family = open_family(WanSettings(path=str(folder), encoders="toy"))
    options = {"dtype": dtype, "random_init_seed": seed}
    device = start_distributed()
    sharded = load_sharded(family, device=device, deepspeed_config=DEEPSPEED, **options)
    return sharded, family.load_transformer(**options).to(device)


def same(sharded, whole) -> bool:
    pairs = zip(sharded.named_parameters(), whole.named_parameters(), strict=True)
    for (name, shard), (other, parameter) in pairs:
        assert name == other and shard.numel() == 0, "held whole"
        with deepspeed.zero.GatheredParameters([shard]):
            if shard.dtype != parameter.dtype or not torch.equal(shard, parameter):
                return False
    buffers = zip(sharded.named_buffers(), whole.named_buffers(), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in buffers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_file_an_index_and_fresh_weights_come_out_as_they_ever_do(tiny_wan, tmp_path, dtype):
    sharded, whole = load(tiny_wan, dtype)
    assert same(sharded, whole)
    assert (
        whole.blocks[0].norm2.weight.dtype == torch.float32
        and whole.blocks[0].attn1.to_q.weight.dtype == dtype
    )
    family = open_family(WanSettings(path=str(tiny_wan), encoders="toy"))
    family.load_transformer(dtype=torch.float32).save_pretrained(
        tmp_path / "transformer", max_shard_size="60KB"
    )
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    assert same(load(tmp_path, dtype)[0], whole)
    fresh, expected = load(tiny_wan, dtype, seed=3)
    assert same(fresh, expected) and not same(fresh, whole)


def test_no_rank_ever_holds_the_whole_model(tmp_path, ranks):
    """A rank's share of a model of twelve blocks, and one module; the ordinary way holds all of it."""
    found = ranks.call(sharded_build.peaks, str(save_tiny_wan(tmp_path, layers=12)))
    assert len(found) == 2
    for rank in found:
        assert rank["ordinary"] >= rank["whole"]
        assert rank["held"] < 0.55 * rank["whole"]
        assert rank["sharded"] < 0.65 * rank["whole"]
        assert rank["frozen"] < 0.65 * rank["whole"]


def test_a_folder_that_lacks_a_tensor_or_has_another_shape(tiny_wan, tmp_path):
    def changed(change):
        folder = tmp_path / change.__name__ / "transformer"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text((tiny_wan / "transformer" / "config.json").read_text())
        tensors = load_file(tiny_wan / "transformer" / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)
        return folder.parent

    def lacking(tensors):
        del tensors["proj_out.bias"]

    def reshaped(tensors):
        tensors["proj_out.bias"] = torch.zeros(3)

    with pytest.raises(
        InputError, match="no tensor `proj_out.bias`, which the transformer's config.json asks for"
    ):
        load(changed(lacking))
    with pytest.raises(
        InputError, match=r"`proj_out.bias` is \(3,\), the transformer's config.json asks for \(192,\)"
    ):
        load(changed(reshaped))
    (tmp_path / "lacking" / "transformer" / WEIGHTS).unlink()
    with pytest.raises(InputError, match="neither diffusion_pytorch_model.safetensors nor its index"):
        load(tmp_path / "lacking")
