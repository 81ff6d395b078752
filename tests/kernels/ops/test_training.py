"""Training with the ops and without: the same losses, in a plain loop and under DeepSpeed ZeRO-3."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, build

from pgdpo_kernels import apply_to, set_backend

pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")


def train(family: str, dtype: torch.dtype, fused: bool, steps: int) -> list[float]:
    """Losses of a LoRA that denoises the same latents under fresh noise."""
    model, inputs = build(family, dtype)
    torch.manual_seed(5)
    model.requires_grad_(False)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for module in model.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            for name in module.adapter_layer_names:
                getattr(module, name).float()
    if fused:
        apply_to(model, strict=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    clean, losses = inputs["hidden_states"], []
    for step in range(steps):
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1000 + step)).to(clean)
        noisy = 0.5 * clean + 0.5 * noise
        output = model(**inputs | {"hidden_states": noisy}, return_dict=False)[0]
        loss = (output.float() - (noise - clean).float()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def compare(family, dtype, tolerance, steps):
    eager = train(family, dtype, False, steps)
    with set_backend("triton"):
        fused = train(family, dtype, True, steps)
    apart = max(abs(a - b) / a for a, b in zip(eager, fused, strict=True))
    print(f"\n{family} {dtype}: loss {eager[0]:.4f} to {eager[-1]:.4f}, at most {apart:.1e} apart")
    assert sum(eager[-5:]) < sum(eager[:5])
    assert apart < tolerance


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float32, 1e-4)], ids=["bf16", "fp32"]
)
def test_thirty_steps(family, dtype, tolerance):
    compare(family, dtype, tolerance, 30)


def zero3(mode: str, adapter: str) -> list[float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("zero3_step.py")
    result = subprocess.run(
        [sys.executable, script, mode, str(port), adapter], env=os.environ, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-3000:]
    line = next(line for line in result.stdout.splitlines() if line.startswith("LOSSES"))
    return [float(word) for word in line.split()[1:]]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_deepspeed_zero3(adapter):
    """Norm weights are read outside their own modules' forward: ZeRO-3 must gather them all the same."""
    pytest.importorskip("deepspeed")
    fused, eager = zero3("fused", adapter), zero3("eager", adapter)
    assert eager[1] < eager[0]
    assert fused == pytest.approx(eager, rel=1e-5)
