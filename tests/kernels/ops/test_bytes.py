"""The bytes that a block moves and keeps, counted on fake tensors at full width."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

COUNT = """
import dataclasses, json
from block_bytes import BLOCKS, count
print(json.dumps({name: [dataclasses.asdict(part) for part in count(name)] for name in BLOCKS}))
"""


def test_blocks_move_a_quarter_and_keep_no_more():
    """In a process of its own: DeepSpeed's ZeRO-3, once used, leaves another `linear` behind."""
    pytest.importorskip("diffusers")
    command = [sys.executable, "-c", COUNT]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    for name, (eager, fused) in json.loads(done.stdout.splitlines()[-1]).items():
        assert fused["forward"] < eager["forward"] / 4, name
        assert fused["backward"] < eager["backward"] / 3, name
        assert fused["saved"] <= eager["saved"], name
