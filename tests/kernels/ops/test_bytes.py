"""The bytes that a block moves and keeps, counted on fake tensors at full width."""

import pytest
import torch
from block_bytes import BLOCKS, count


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_move_a_quarter_and_keep_no_more(block, monkeypatch):
    pytest.importorskip("diffusers")
    # Imported first without the interpreter where there is a GPU: its own functions then stay compiled.
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # DeepSpeed's ZeRO-3, once used in this process, leaves another one behind.
    monkeypatch.setattr(torch.nn.functional, "linear", torch._C._nn.linear)
    eager, fused = count(block)
    assert fused.forward < eager.forward / 4
    assert fused.backward < eager.backward / 3
    assert fused.saved <= eager.saved
