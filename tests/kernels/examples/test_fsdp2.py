"""FSDP2 gives every block that it shards a class of its own: the ops must find what is under it."""

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

from pgdpo_kernels import apply_to, revert, set_backend

diffusers = pytest.importorskip("diffusers")

SHAPE = dict(num_attention_heads=2, attention_head_dim=16, text_dim=8, num_layers=2, ffn_dim=32)


@pytest.fixture
def mesh():
    own = not distributed.is_initialized()  # another test's may be left
    if own:
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    if own:
        distributed.destroy_process_group()


def built() -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(**SHAPE)


def shard(model, mesh) -> None:
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def loss_and_grad(model) -> tuple[float, torch.Tensor]:
    """The norm's weight is read outside of its own forward."""
    draw = torch.Generator().manual_seed(1)
    latents, text = torch.randn(1, 16, 1, 4, 4, generator=draw), torch.randn(1, 4, 8, generator=draw)
    loss = model(latents, torch.tensor([500.0]), text).sample.square().mean()
    loss.backward()
    grad = model.blocks[1].attn1.norm_q.weight.grad
    model.zero_grad()
    return loss.item(), getattr(grad, "full_tensor", lambda: grad)()


@pytest.mark.parametrize("first", ["apply_to", "fully_shard"])
def test_before_and_after_sharding(mesh, first):
    expected, slope = loss_and_grad(built())
    model = built()
    if first == "fully_shard":
        shard(model, mesh)
    replaced = apply_to(model, strict=True)
    if first == "apply_to":
        shard(model, mesh)
    assert len(replaced) == 4
    with set_backend("eager"):
        loss, grad = loss_and_grad(model)
    assert loss == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(grad, slope, rtol=1e-4, atol=1e-7)
    revert(model)
    assert "forward" not in model.blocks[0].__dict__
    assert loss_and_grad(model)[0] == pytest.approx(expected, rel=1e-6)
