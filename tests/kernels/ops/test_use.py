"""The ops as citizens of PyTorch, the example, and wrong use."""

import functools
import importlib.metadata
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_oracle import DEVICE
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import pgdpo_kernels
from pgdpo_kernels import (
    diffusion_dpo_loss,
    gate_heads,
    gate_residual,
    gate_residual_norm_modulate,
    hidden,
    norm_modulate,
    norm_rope,
    pair_errors,
    qk_norm_rope,
    set_backend,
)

ROOT = Path(__file__).resolve().parents[3]


def tensor(*shape, seed=0, grad=True, dtype=torch.float32):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE, dtype).requires_grad_(grad)


X, BRANCH, GATE, SCALE = (1, 3, 24), (1, 3, 24), (1, 1, 24), (1, 3, 24)


def test_opcheck():
    """Without gradients: an `autograd.Function` around the operators has those."""
    op = torch.ops.pgdpo_kernels.gate_residual_norm_modulate.default
    x, branch, gate, scale, vector = (
        tensor(*shape, seed=seed, grad=False) for seed, shape in enumerate((X, BRANCH, GATE, SCALE, (24,)))
    )
    torch.library.opcheck(
        op, (x, branch, gate, vector, scale, None, scale, None, vector, vector, "layer", 1e-6)
    )
    op = torch.ops.pgdpo_kernels.gate_residual.default
    torch.library.opcheck(op, (x, branch, gate, None))
    op = torch.ops.pgdpo_kernels.qk_norm_rope.default
    cos = torch.rand(1, 3, 1, 8, device=DEVICE)
    settings = (3, "rms_full", "neighbours", 0, 3, 1e-6)
    torch.library.opcheck(op, (x, branch, vector, vector, None, None, cos, cos, *settings))
    op, halves = torch.ops.pgdpo_kernels.norm_rope.default, (3, "rms_head", "halves", 0, 3, 1e-6)
    torch.library.opcheck(op, (x, vector[:8], None, cos, cos, *halves))
    op = torch.ops.pgdpo_kernels.norm_rope_backward.default
    torch.library.opcheck(op, (branch, x, vector[:8], cos, cos, *halves, True, False))
    logits = tensor(1, 3, 4, grad=False)
    torch.library.opcheck(torch.ops.pgdpo_kernels.gate_heads.default, (x, logits, 2.0))
    torch.library.opcheck(torch.ops.pgdpo_kernels.gate_heads_backward.default, (branch, x, logits, 2.0))


def test_compiles_for_any_length():
    def loss(x):
        return norm_modulate(x).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    with set_backend("triton"):
        for tokens in (3, 5):
            x = tensor(1, tokens, 24)
            pairs = zip(torch.autograd.grad(compiled(x), x), torch.autograd.grad(loss(x), x), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)


def test_same_bits_in_any_batch():
    """A sample's numbers don't depend on its neighbours, nor on whether gradients are kept."""
    with set_backend("triton"):
        x, scale = tensor(3, 5, 40, dtype=torch.bfloat16), tensor(3, 40, seed=1)
        y = norm_modulate(x, scale)
        grads = torch.autograd.grad(y.float().square().sum(), [x, scale])
        one_x, one_scale = (v[1:2].detach().requires_grad_() for v in (x, scale))
        one = norm_modulate(one_x, one_scale)
        one_grads = torch.autograd.grad(one.float().square().sum(), [one_x, one_scale])
        with torch.no_grad():
            assert torch.equal(norm_modulate(x, scale), y)
    assert torch.equal(y[1:2], one)
    assert all(torch.equal(a[1:2], b) for a, b in zip(grads, one_grads, strict=True))


def test_backward_leaves_the_incoming_gradient_alone():
    with set_backend("triton"):
        x, branch, gate = tensor(1, 3, 24), tensor(1, 3, 24, seed=1), tensor(1, 24)
        hidden, y = gate_residual_norm_modulate(x, branch, gate)
        slopes = [torch.ones_like(hidden), torch.ones_like(y)]
        torch.autograd.grad([hidden, y], [x, branch, gate], slopes)
    assert all((slope == 1).all() for slope in slopes)


def calls():
    """Each op by its first argument."""
    x = tensor(2, 6, 24, seed=3)
    return {
        "gate_residual": lambda y: gate_residual(y, x, x),
        "norm_modulate": lambda y: norm_modulate(y, x),
        "gate_residual_norm_modulate": lambda y: gate_residual_norm_modulate(y, x, x, x, x)[1],
        "qk_norm_rope": lambda y: qk_norm_rope(y, x, num_heads=3)[0],
        "norm_rope": lambda y: norm_rope(y, num_heads=3),
        "gate_heads": lambda y: gate_heads(y, x[..., :4]),
        "pair_errors": lambda y: pair_errors(y, x).policy_chosen,
        "diffusion_dpo_loss": lambda y: diffusion_dpo_loss(y, x, x + 1, beta=1.0).loss,
    }


@pytest.mark.parametrize("op", calls())
def test_gradients_of_gradients_are_refused(op):
    """Also where they come by another way too, here through the square: a part of them would be no gradient."""
    x, call = tensor(2, 6, 24), calls()[op]
    with set_backend("triton"):
        (slope,) = torch.autograd.grad(call(x.square()).square().sum(), x, create_graph=True)
        for inputs in ([x], None):
            with pytest.raises(RuntimeError, match="no gradient of their gradients"):
                slope.sum().backward(retain_graph=True, inputs=inputs)


@pytest.mark.parametrize("grad", [True, False])
def test_forward_derivatives_are_refused(grad):
    x, call = tensor(2, 6, 24, grad=False), calls()["norm_modulate"]
    refused = pytest.raises(NotImplementedError, match="forward mode AD")
    with set_backend("triton"), torch.set_grad_enabled(grad), forward_ad.dual_level(), refused:
        call(forward_ad.make_dual(x, x))


@pytest.mark.parametrize(
    "saved, launches", [(CheckpointPolicy.MUST_SAVE, 1), (CheckpointPolicy.MUST_RECOMPUTE, 2)]
)
def test_selective_checkpointing_knows_the_operators(saved, launches, monkeypatch):
    """A policy names them; what it saves is not launched again."""
    launched = []

    def launch(kernel, *arguments, launch=hidden.gate_residual.launch_gate, **constants):
        launched.append(kernel.fn.__name__)
        launch(kernel, *arguments, **constants)

    def policy(context, op, *arguments, **options):
        ours = op == torch.ops.pgdpo_kernels.gate_residual.default
        return saved if ours else CheckpointPolicy.PREFER_RECOMPUTE

    x, gate = tensor(1, 3, 24), tensor(1, 24, seed=1, grad=False)
    block = lambda x: gate_residual(x.sin(), x, gate).square().sum()  # noqa: E731
    monkeypatch.setattr(hidden.gate_residual, "launch_gate", launch)
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    with set_backend("triton"):
        (plain,) = torch.autograd.grad(block(x), x)
        launched.clear()
        loss = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        (slope,) = torch.autograd.grad(loss, x)
    assert torch.equal(slope, plain) and launched.count("gate_forward") == launches


def test_a_copy_under_another_name_has_operators_of_its_own(monkeypatch):
    """As Hugging Face's `kernels` loads a package from the hub, beside one that is installed."""
    name, folder = "pgdpo_kernels_copy", Path(pgdpo_kernels.__file__).parent
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, copy)
    spec.loader.exec_module(copy)
    x = tensor(1, 3, 24)
    with set_backend("triton"), copy.set_backend("triton"):
        assert torch.equal(copy.norm_modulate(x), norm_modulate(x))
    assert torch.ops.pgdpo_kernels_copy.gate_residual.default != torch.ops.pgdpo_kernels.gate_residual.default


def test_frozen_parameters_keep_nothing_of_the_branch():
    """The branch is needed for the gate's gradient alone, so that a frozen gate frees it."""

    def kept(trained):
        saved = []
        x, branch, gate = tensor(1, 3, 24), tensor(1, 3, 24, seed=1), tensor(1, 24, grad=trained)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape), lambda t: t):
            gate_residual(x, branch, gate)
        return saved

    with set_backend("triton"):
        assert torch.Size(X) in kept(True)
        assert torch.Size(X) not in kept(False)


def test_wrong_use_says_what_is_wrong():
    x = tensor(2, 6, 24)
    for call, message in (
        (lambda: norm_modulate(x[0]), r"x must be \[B, N, D\]"),
        (lambda: norm_modulate(x, tensor(2, 4, 24)), r"scale must be .* got shape \(2, 4, 24\)"),
        (lambda: norm_modulate(x, norm="group"), r"norm must be one of .*'group'"),
        (lambda: norm_modulate(x, weight=tensor(3)), r"weight must have shape \(24,\)"),
        (lambda: norm_modulate(x, tensor(2, 2, 24), tensor(2, 3, 24)), "the same number of vectors"),
        (lambda: gate_residual(x, x[:, :3], x), "branch must have the residual's shape"),
        (lambda: gate_residual(x, x, None), "gate must be given"),
        (lambda: qk_norm_rope(x, x, num_heads=5), "5 heads do not cut a width of 24"),
        (lambda: qk_norm_rope(x, x, tensor(24), num_heads=3), "q_weight and k_weight go together"),
        (lambda: qk_norm_rope(x, x, cos=x, num_heads=3), "cos and sin go together"),
        (
            lambda: qk_norm_rope(x, x, cos=x[0, :4], sin=x[0, :4], num_heads=3),
            r"cos and sin must be \[N', W\]",
        ),
        (lambda: qk_norm_rope(x, x, num_heads=3, rope_start=4, rope_len=3), "not within 6"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="x must be bfloat16, float16 or float32"):
        norm_modulate(x.double())
    with (
        set_backend("triton"),
        pytest.raises(RuntimeError, match="asked for, but 100 heads of 72, padded to 128, are beyond 8192"),
    ):
        qk_norm_rope(x := tensor(1, 1, 7200), x, num_heads=100)


def test_example_runs_without_pgdpo(capsys, monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setitem(sys.modules, "pgdpo", None)  # an import of it fails
    example = ROOT / "kernels" / "examples" / "plain_loop.py"
    source = example.read_text(encoding="utf-8")
    assert not re.search(r"\bpgdpo\b", source)
    runpy.run_path(str(example), run_name="__main__")
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "['blocks.0.forward', 'blocks.0.attn1.processor']"
    losses = [float(line.split()[1]) for line in rest]
    assert len(losses) == 5 and losses[-1] < losses[0]


IMPORT = "import sys; sys.path.insert(0, sys.argv[1]); import kernels; print(kernels.get_kernel.__name__)"


def test_a_package_named_kernels_still_imports(tmp_path):
    """A plain folder loses to any regular package, even to one that comes later on the path."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("def get_kernel(): ...\n")
    command = [sys.executable, "-c", IMPORT, ROOT]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "get_kernel", result.stderr


def test_hugging_faces_kernels_still_imports():
    """The package that transformers and diffusers import, where it is installed."""
    try:
        importlib.metadata.version("kernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("Hugging Face's kernels is not installed")
    result = subprocess.run([sys.executable, "-c", IMPORT, ROOT], capture_output=True, text=True)
    assert result.stdout.strip() == "get_kernel", result.stderr
