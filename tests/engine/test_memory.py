"""Checkpointing, activation offload, compiled blocks, attention backends: the same gradients, and less that is kept."""

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode

from pgdpo.config import AdapterConfig
from pgdpo.engine.blocks import each_block, tell_of_blocks
from pgdpo.engine.memory import save_memory, with_activation_offload
from pgdpo.messages.errors import InputError
from pgdpo.models.adapters.adapter import add_adapter
from pgdpo.models.families.wan import WanSettings
from tests.live_bytes import LiveBytes
from tests.worlds import losses, metrics, run_pgdpo

CPU = torch.device("cpu")
BLOCKS = 2
ATTENTIONS = 2 * BLOCKS  # a block attends to itself and to the prompt
LN2 = float(torch.tensor(0.6931471805599453, dtype=torch.float32))


class AttentionCalls(TorchDispatchMode):
    """How often torch's attention operator really runs."""

    calls = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name()
        self.calls += name.startswith("aten::_scaled_dot_product") and not name.endswith("backward")
        return operator(*args, **kwargs or {})


def tiny(layers: int = BLOCKS, **model) -> torch.nn.Module:
    """A Wan transformer with a LoRA that does something."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, text_dim=32, freq_dim=16,
        ffn_dim=48, num_layers=layers, rope_max_seq_len=32,
    )  # fmt: skip
    add_adapter(transformer, AdapterConfig(rank=4, alpha=4, target_modules=["to_q", "to_v", "net.2"]), seed=0)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    save_memory(transformer, WanSettings(path="tiny", **model))
    tell_of_blocks(transformer)
    return transformer.train()


def predict(forward) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return forward(
        hidden_states=torch.randn(2, 4, 3, 8, 8, generator=generator),
        timestep=torch.tensor([100.0, 700.0]),
        encoder_hidden_states=torch.randn(2, 8, 32, generator=generator),
        return_dict=False,
    )[0]


def gradients(transformer, forward=None) -> torch.Tensor:
    predict(forward or transformer).square().mean().backward()
    return torch.cat([p.grad.flatten() for p in transformer.parameters() if p.requires_grad])


OPTIONS = [
    {"gradient_checkpointing": "full"},
    {"gradient_checkpointing": "selective"},
    {"gradient_checkpointing": "full", "activation_offload": True},
    {"gradient_checkpointing": "selective", "activation_offload": True, "compile": "aot_eager"},
    {"compile": "aot_eager"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_gradients_are_those_without_the_option(options):
    expected = gradients(tiny())
    transformer = tiny(**options)
    offloads = options.get("activation_offload", False)
    told = []
    with each_block(lambda: told.append(len(told))):
        found = gradients(transformer, with_activation_offload(transformer, CPU) if offloads else None)
    assert expected.norm() > 0
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    assert len(told) >= 2 * BLOCKS  # forward and backward; what is recomputed may stop before its end


class Broken(Exception):
    pass


@pytest.mark.parametrize("options", [{}, *OPTIONS[3:]], ids=["none", "selective-compiled", "compiled"])
@pytest.mark.parametrize("after", [1, BLOCKS + 1])
def test_forward_and_backward_can_be_broken_off_between_blocks(options, after):
    transformer, told = tiny(**options), []

    def tell():
        told.append(len(told))
        if len(told) > after:
            raise Broken

    with pytest.raises(Broken), each_block(tell):
        gradients(transformer)
    before = gradients(tiny(**options))
    transformer.zero_grad()
    assert torch.equal(gradients(transformer), before)  # it is as good as new


def attention_calls(mode: str) -> int:
    with AttentionCalls() as counted:
        gradients(tiny(gradient_checkpointing=mode))
    return counted.calls


def test_full_recomputes_attention_and_selective_does_not():
    counts = [attention_calls(mode) for mode in ("none", "full", "selective")]
    assert counts == [ATTENTIONS, 2 * ATTENTIONS, ATTENTIONS]


def test_selective_keeps_more_than_full_and_far_less_than_none():
    kept = {}
    for mode in ("none", "full", "selective"):
        transformer = tiny(layers=6, gradient_checkpointing=mode)
        with LiveBytes() as live:
            output = predict(transformer)
        kept[mode] = live.now
        del output
    assert kept["full"] < kept["selective"] < 0.5 * kept["none"]


def test_activation_offload_moves_each_block_input_and_no_weight_of_a_block(monkeypatch):
    """On a CPU `save_on_cpu` has nothing to copy, so hooks that record stand where it would."""
    moved = []

    class Recording(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pin_memory: bool) -> None:
            super().__init__(lambda tensor: moved.append(tensor) or tensor, lambda tensor: tensor)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Recording)
    transformer = tiny(gradient_checkpointing="full")
    inputs = []
    for block in transformer.blocks:
        block.register_forward_pre_hook(lambda block, given: inputs.append(given[0].data_ptr()))
    gradients(transformer, with_activation_offload(transformer, CPU))
    pointers = {tensor.data_ptr() for tensor in moved}
    assert len(inputs) == 2 * BLOCKS and set(inputs[:BLOCKS]) <= pointers  # once more in the recomputation
    assert not pointers & {weight.data_ptr() for weight in transformer.blocks.parameters()}


def test_selective_wants_an_attention_whose_operator_is_known():
    with pytest.raises(InputError, match="operator of model.attention 'flex' is not known.*or one of native"):
        tiny(gradient_checkpointing="selective", attention="flex")


@pytest.mark.usefixtures("eager_kernels")
@pytest.mark.parametrize("compiled", ["none", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_a_run_with_all_of_it_starts_at_margin_zero_and_goes_the_same_way(config_file, compiled):
    run_pgdpo("train", config_file, "name=plain")
    options = ("gradient_checkpointing=selective", "activation_offload=true", f"compile={compiled}")
    run_pgdpo("train", config_file, "name=saving", *(f"model.{option}" for option in options))
    output = config_file.parent / "out"
    assert metrics(output, "saving")[0]["margin"] == 0.0 and losses(output, "saving")[0] == LN2
    assert losses(output, "saving") == pytest.approx(losses(output, "plain"), rel=1e-6)


@pytest.mark.slow
def test_compiled_code_gives_the_same_gradients():
    expected = gradients(tiny())
    for mode in ("none", "selective"):
        found = gradients(tiny(gradient_checkpointing=mode, compile="inductor"))
        assert (found - expected).norm() <= 1e-5 * expected.norm()


class MockXformers:
    """Stands for xformers' kernel, which has no CPU operator; it counts its calls, with a gradient and without."""

    def __init__(self) -> None:
        self.trained = self.untrained = 0

    def __call__(self, query, key, value, mask=None, dropout=0.0, scale=None):
        if query.shape[2] > 1 and not query.is_meta:  # not the trial before the weights are loaded, not FLOPs
            self.trained += torch.is_grad_enabled()
            self.untrained += not torch.is_grad_enabled()
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, mask, dropout, scale=scale
        )
        return output.transpose(1, 2)


@pytest.fixture
def mock_xformers(monkeypatch) -> MockXformers:
    pytest.importorskip("xformers.ops")
    mock = MockXformers()
    monkeypatch.setattr("diffusers.models.attention_dispatch.xops.memory_efficient_attention", mock)
    return mock


@pytest.mark.parametrize("reference", ["adapter", "frozen"])
def test_policy_and_reference_take_the_same_backend(config_file, mock_xformers, reference):
    options = ("train.steps=1", "train.micro_batch_groups=4", f"train.reference={reference}")
    run_pgdpo("train", config_file, "name=all", *options, "model.attention=xformers")
    assert (mock_xformers.trained, mock_xformers.untrained) == (ATTENTIONS, ATTENTIONS)
    assert metrics(config_file.parent / "out", "all")[0]["margin"] == 0.0
    run_pgdpo("train", config_file, "name=one", *options, "model.reference_attention=xformers")
    assert (mock_xformers.trained, mock_xformers.untrained) == (ATTENTIONS, 2 * ATTENTIONS)
