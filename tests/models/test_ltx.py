"""LTX-Video's own: the frame rate that is told to the transformer."""

from pgdpo.checkpoints.identity import base_identity
from pgdpo.config.read import load_config
from tests.models.families import FAMILIES
from tests.models.road import Road


def test_a_run_with_another_frame_rate_is_another_run(saved, world, tmp_path):
    """A checkpoint, or cached errors, of one frame rate must not be taken for those of another."""
    kind = FAMILIES["ltx"]
    folder = saved(kind.save)
    config = load_config(Road(kind, folder, world, tmp_path).config())
    identities = {base_identity(config, kind.open(folder, frame_rate=rate)) for rate in (None, 25, 8)}
    assert len(identities) == 2
