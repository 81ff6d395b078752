"""Models by a hub id: which commit is taken, what is downloaded when and by whom. The hub: fake_hub.py."""

import shutil

import pytest
import torch

from pgdpo.messages.errors import InputError
from pgdpo.models import open_family
from pgdpo.models.families.wan import WanSettings
from pgdpo.models.weights import hub
from tests.models.weights import hub_ranks
from tests.models.weights.fake_hub import REPOSITORY, FakeHub, asked_of
from tests.worlds import run_pgdpo, save_tiny_wan

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def server(tiny_wan):
    """The hub, with a tiny Wan as the commit of main."""
    server = FakeHub()
    server.first = server.commit(tiny_wan, "main", "v1")
    yield server
    server.close()


@pytest.fixture
def other(tmp_path):
    """Another tiny Wan, of one layer."""
    return save_tiny_wan(tmp_path / "other", layers=1)


def tiny(**options) -> WanSettings:
    return WanSettings(path=REPOSITORY, encoders="toy", **options)


def test_weights_come_when_they_are_loaded_and_once(server, tiny_wan, tmp_path):
    (copy := tmp_path / "copy").mkdir()
    shutil.copytree(tiny_wan, copy, dirs_exist_ok=True)
    (copy / "transformer/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not asked for")
    server.commit(copy, "main")
    with asked_of(server.endpoint, str(tmp_path / "cache")):
        family = open_family(tiny())
        assert not [name for _, name in server.asked if name.endswith(".safetensors")]
        loaded = family.load_transformer(dtype=torch.float32).state_dict()
        assert family.fingerprint("transformer") == REPOSITORY
    whole = open_family(WanSettings(path=str(tiny_wan), encoders="toy")).load_transformer(dtype=torch.float32)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.state_dict().items())
    before = server.asked.copy()
    assert before["GET", WEIGHTS] == 1 and not any("fp16" in name for _, name in before)
    with asked_of(server.endpoint, str(tmp_path / "cache")):
        open_family(tiny(revision=hub.commit_of(tiny()))).load_transformer(dtype=torch.float32)
    assert (server.asked - before).keys() == {
        ("GET", "api")
    }  # which commit main is; a commit is asked of nobody


def test_a_revision_is_a_branch_a_tag_or_a_commit(server, other, tmp_path):
    server.second = server.commit(other, "main")
    with asked_of(server.endpoint, str(tmp_path / "cache")):
        layers = {
            revision: len(open_family(tiny(revision=revision)).load_transformer(dtype=torch.float32).blocks)
            for revision in (None, "main", "v1", server.first, server.second)
        }
        assert layers == {None: 1, "main": 1, "v1": 2, server.first: 2, server.second: 1}
        assert hub.commit_of(tiny(revision="v1")) == server.first and hub.commit_of(tiny()) == server.second
        assert open_family(tiny(revision="v1")).fingerprint("transformer") == f"{REPOSITORY}@v1"
        with pytest.raises(InputError, match=r"model.path is 'owner/tiny'.* at model.revision 'v9'"):
            open_family(tiny(revision="v9"))
        with pytest.raises(InputError, match="model.path is 'owner/none': it cannot be read from the hub"):
            open_family(WanSettings(family="wan", path="owner/none", encoders="toy"))


def test_one_rank_of_each_node_downloads_before_the_process_group_waits(server, ranks, tmp_path):
    server.seconds = 0.5
    caches = [str(tmp_path / f"node{node}") for node in range(2)]
    found = ranks.call(hub_ranks.start, server.endpoint, caches, ranks=3)
    assert {rank["commit"] for rank in found} == {server.first} and len(
        {rank["tensors"] for rank in found}
    ) == 1
    assert [rank["asked"] for rank in found] == [[False], [], [False]]  # whether a group was there by then
    assert server.asked["GET", WEIGHTS] == 2


def test_a_node_that_cannot_download_ends_all(server, ranks, tmp_path):
    (tmp_path / "node1").write_text("a file")
    caches = [str(tmp_path / f"node{node}") for node in range(2)]
    found = ranks.call(hub_ranks.start, server.endpoint, caches, ranks=3)
    assert len({rank["refused"] for rank in found}) == 1
    assert "model.path is 'owner/tiny': it cannot be read from the hub" in found[0]["refused"]


@pytest.mark.usefixtures("eager_kernels")
def test_a_run_goes_by_the_commit_that_it_began_with(server, other, config_file, tmp_path, capfd):
    by_id = [config_file, f"model.path={REPOSITORY}", "train.steps=1", "name=hub"]
    with asked_of(server.endpoint, str(tmp_path / "cache")):
        run_pgdpo("train", *by_id)
    server.commit(other, "main")
    with asked_of(server.endpoint, str(tmp_path / "cache")):
        run_pgdpo("export", tmp_path / "out" / "hub")
    assert f"{REPOSITORY} at commit {server.first}, with which" in capfd.readouterr().out.replace("\n", " ")
    card = (tmp_path / "out/hub/export/README.md").read_text()
    assert f"`{REPOSITORY}` at commit `{server.first}`" in card and f"base_model: {REPOSITORY}" in card
    with (
        asked_of(server.endpoint, str(tmp_path / "cache")),
        pytest.raises(InputError, match="model_commit is"),
    ):
        run_pgdpo("train", *by_id, "train.steps=2", "--resume", "model.revision=main")
