"""The files of a checkpoint: written and hashed beside the training, which may change its tensors at once."""

import hashlib
import threading

import pytest
import torch
from safetensors.torch import load_file

from pgdpo.checkpoints import shards
from pgdpo.checkpoints.shards import HUGE_PAGE, HashedFiles, ShardWriter
from pgdpo.engine.engine import start_distributed

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def one_rank():
    start_distributed()


@pytest.mark.parametrize("size", [10, HUGE_PAGE], ids=["small", "in huge pages"])
def test_a_tensor_may_be_changed_while_it_is_written_and_hashed(tmp_path, size):
    files = HashedFiles(tmp_path)
    live = {"a": torch.randn(size), "b": torch.arange(12.0).view(3, 4).t(), "c": torch.tensor(True)}
    expected = {name: tensor.clone() for name, tensor in live.items()}
    writer = ShardWriter(files, "weights")
    for name, tensor in live.items():
        writer.add(name, tensor)
        tensor.zero_()
    writer.close()
    hashes = files.hashes()
    (file,) = tmp_path.iterdir()
    entry = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert hashes == {"weights-00000-00000.safetensors": entry}
    found = load_file(file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_few_files_are_in_memory(tmp_path, monkeypatch):
    """`add` hands a file over only where at most HELD, with it, are not yet hashed."""
    monkeypatch.setattr(shards, "HELD", 3)
    lock, held, most = threading.Lock(), [0], [0]
    real = HashedFiles._hash

    def hashing(self, *arguments):
        entry = real(self, *arguments)
        with lock:
            held[0] -= 1
        return entry

    class Parts(list):
        def __init__(self, number):
            super().__init__([bytes([number]) * 1_000_000])
            with lock:
                held[0] += 1

    monkeypatch.setattr(HashedFiles, "_hash", hashing)
    submit = shards.ThreadPoolExecutor.submit

    def handed_over(pool, work, *arguments):
        with lock:
            most[0] = max(most[0], held[0])
        return submit(pool, work, *arguments)

    monkeypatch.setattr(shards.ThreadPoolExecutor, "submit", handed_over)
    files = HashedFiles(tmp_path)
    for number in range(12):
        files.add(f"{number}", Parts(number))
    assert len(files.hashes()) == 12
    assert most[0] == 3


def test_a_failed_write_is_raised_where_ranks_can_agree_on_it(tmp_path):
    files = HashedFiles(tmp_path / "nowhere")
    files.add("file", [b"bytes"])
    files.add("other", [b"bytes"])
    with pytest.raises(FileNotFoundError):
        files.written()
    with pytest.raises(FileNotFoundError):
        files.hashes()
