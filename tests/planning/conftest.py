"""A folder that is planned for: an architecture, no weights."""

from pathlib import Path

import pytest

from tests.worlds import write_config


@pytest.fixture(scope="session")
def bare_wan(tmp_path_factory) -> Path:
    """transformer/config.json of a small Wan with odd sizes, and a tensor above ZeRO-3's threshold."""
    import torch
    from diffusers import WanTransformer3DModel

    folder = tmp_path_factory.mktemp("bare_wan")
    with torch.device("meta"):
        WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=64,
            in_channels=48,
            out_channels=48,
            text_dim=64,
            freq_dim=16,
            ffn_dim=801,
            num_layers=5,
        ).save_config(folder / "transformer")
    return folder


@pytest.fixture
def plan_file(bare_wan, tmp_path) -> Path:
    """A configuration of `bare_wan`, random weights, on the toy's pairs."""
    model = {
        "path": str(bare_wan),
        "random_init": True,
        "adapter": {"rank": 3, "alpha": 4, "target_modules": ["to_q", "ffn.net.2"]},
    }
    return write_config(tmp_path / "plan.yaml", tmp_path / "out", bare_wan, model=model)
