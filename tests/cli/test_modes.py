"""What is written has the mode of any new file under the user's umask, whoever writes it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pgdpo.files.atomic import as_opened, atomic_path, write_json
from tests.worlds import run_pgdpo


def of_umask(folder: Path, umask: int) -> list[str]:
    """Of all that lies in `folder`: what has another mode than `open` and `mkdir` give under that umask."""
    lying = [path for path in folder.rglob("*") if not path.is_symlink()]
    assert len(lying) > 2
    modes = {path: path.stat().st_mode & 0o777 for path in lying}
    return [
        f"{path.relative_to(folder)} {mode:o}"
        for path, mode in modes.items()
        if mode != (0o777 if path.is_dir() else 0o666) & ~umask
    ]


@pytest.mark.quick
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002], indirect=True, ids=oct)
def test_safetensors_and_json_under_any_umask(tmp_path, umask):
    tensors = {"a": torch.zeros(2)}
    with atomic_path(tmp_path / "new" / "weights.safetensors") as temporary:
        save_file(tensors, temporary)
    write_json(tmp_path / "results.json", {})
    folder = tmp_path / "export" / "transformer"
    folder.mkdir(parents=True)
    save_file(tensors, folder / "weights.safetensors")
    as_opened(folder.parent)
    assert of_umask(tmp_path, umask) == []
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "weights.safetensors",
        "results.json",
    }


@pytest.mark.usefixtures("eager_kernels")
@pytest.mark.parametrize("umask", [0o027], indirect=True, ids=oct)
def test_a_run_and_its_export(config_file, umask):
    run_pgdpo("train", config_file, "train.steps=1")
    formats = [part for name in ("diffusers", "comfyui", "merged") for part in ("--format", name)]
    run_pgdpo("export", config_file.parent / "out" / "dpo", *formats)
    assert of_umask(config_file.parent / "out", umask) == []
