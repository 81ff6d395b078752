"""Faults 21 and 22: nothing that is loaded runs code or writes outside its folder, whatever it was made to do."""

import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pgdpo.checkpoints.published import MANIFEST, _manifest_text, find_damage, read_state
from pgdpo.checkpoints.shards import ShardReader
from pgdpo.config.read import load_config
from pgdpo.files.atomic import sha256_of
from pgdpo.files.locations import fetch
from pgdpo.messages.errors import InputError
from tests.models.families import FAMILIES
from tests.worlds import run_pgdpo

ROOT = Path(__file__).parents[3]
CANARY = "canary-that-must-not-exist"


class Boom:
    """Unpickled, it makes a file."""

    def __reduce__(self):
        return os.system, (f"touch {CANARY}",)


def pickled(protocol=4) -> bytes:
    return pickle.dumps(Boom(), protocol)


def zipped() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state": Boom()}, buffer)
    return buffer.getvalue()


def header(text, data=b"", size=None) -> bytes:
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensor(begin=0, end=8, shape=(2,), dtype="F32", **more):
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}, **more}


W = "weights-00000-00000.safetensors"
PAYLOADS = {
    **{f"pickle {p} as weights": (W, pickled(p)) for p in range(6)},
    "torch.save as weights": (W, zipped()),
    "pickle as optimizer": ("optimizer-00000-00000.safetensors", pickled()),
    "torch.save as optimizer": ("optimizer-00000-00000.safetensors", zipped()),
    "pickle as extra": ("extra-00000-00000.safetensors", pickled()),
    "pickle as state": ("state.json", pickled()),
    "pickle as .pt": ("mp_rank_00_model_states.pt", pickled()),
    "torch.save as .pt": ("zero_pp_rank_0_mp_rank_00_optim_states.pt", zipped()),
    "pickle as .metadata": (".metadata", pickled(2)),
    "pickle as .bin": ("pytorch_model.bin", zipped()),
    "state of python tags": ("state.json", b"!!python/object/apply:os.system ['touch canary']"),
    "deep state": ("state.json", b"[" * 200_000),
    "header longer than the file": (W, header(tensor(), bytes(8), size=1 << 20)),
    "header of 2^63": (W, header(tensor(), bytes(8), size=1 << 63)),
    "header of 2^64 - 1": (W, header(tensor(), bytes(8), size=(1 << 64) - 1)),
    "header that is no JSON": (W, header(b"{not json}")),
    "header that is a list": (W, header(b"[1, 2]")),
    "header in another encoding": (W, header(b"\xff\xfe{}")),
    "deep header": (W, header(b'{"x":' + b"[" * 100_000)),
    "unknown dtype": (W, header(tensor(dtype="PICKLE"), bytes(8))),
    "negative offset": (W, header(tensor(-8, 0), bytes(8))),
    "offset beyond the end": (W, header(tensor(0, 1 << 40, (1 << 38,)), bytes(8))),
    "begin behind end": (W, header(tensor(8, 0), bytes(8))),
    "shape that overflows": (W, header(tensor(shape=(1 << 62, 1 << 62)), bytes(8))),
    "shape that is too large": (W, header(tensor(shape=(1 << 20,)), bytes(8))),
    "overlapping tensors": (W, header(tensor(y=tensor()["x"]), bytes(8))),
    "a hole": (W, header(tensor(4, 12), bytes(12))),
    "metadata that is no text": (W, header(tensor(__metadata__={"a": {"b": 1}}), bytes(8))),
    "an empty file": (W, b""),
}
HARMLESS = {
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ".metadata",
    "pytorch_model.bin",
}


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """`hostile(file, content)`: a checkpoint folder with that file, all hashes being right."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "step-00000001"
    folder.mkdir()

    def make(file, content):
        for kind in ("weights", "optimizer"):
            save_file({"x": torch.ones(2)}, folder / f"{kind}-00000-00000.safetensors")
        (folder / "state.json").write_text('{"step": 1}')
        (folder / file).write_bytes(content)
        seal(folder)
        return folder

    return make


def seal(folder):
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in folder.iterdir()
        if path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(_manifest_text(files))


def test_the_payload_works_where_it_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickled())
    assert Path(CANARY).exists()


def test_no_checkpoint_runs_code(hostile, tmp_path, tally):
    """30 payloads, each with valid hashes: read, refused by name, never executed. Files that are none of ours are not
    opened at all."""
    assert len(PAYLOADS) >= 30
    held = 0
    for name, (file, content) in PAYLOADS.items():
        shutil.rmtree(tmp_path / "step-00000001")
        (tmp_path / "step-00000001").mkdir()
        folder = hostile(file, content)
        assert find_damage(folder) is None, name
        refusals = []
        for read in (read_state, lambda folder: dict(_tensors(folder))):
            try:
                read(folder)
            except InputError as error:
                refusals.append(str(error))
        assert bool(refusals) == (file not in HARMLESS), (name, refusals)
        assert all(str(folder / file) in text for text in refusals), (name, refusals)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"], name
        held += 1
    tally(21, len(PAYLOADS), held)


def _tensors(folder):
    for kind in ("weights", "optimizer", "extra"):
        yield from ShardReader(folder, kind).items()


def test_a_pickled_manifest_makes_a_damaged_checkpoint(hostile, tally):
    folder = hostile(W, zipped())
    (folder / MANIFEST).write_bytes(pickled())
    assert "manifest.json cannot be read" in find_damage(folder)
    assert not Path(CANARY).exists()
    tally(21, 1, 1)


def test_no_archive_pickle_or_scheme_is_data(tmp_path, monkeypatch, config_file, tally):
    """Archives are never unpacked: as a manifest or as a clip they are refused by name, and nothing comes out."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / "members.tar", "w") as archive:
        for name in ("../escaped.mp4", "/tmp/escaped-absolute.mp4", "clip.pkl"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled())
            archive.addfile(member, io.BytesIO(pickled()))
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.mp4", bytes(50_000_000))
    (folder / "rows.pkl").write_bytes(pickled())
    (folder / "clip.mp4").write_bytes((folder / "bomb.zip").read_bytes())
    overrides = ("prepare", config_file, f"output_dir={tmp_path / 'fresh'}", "data.held_out=null")
    before = sorted(path.name for path in folder.iterdir())
    tried = held = 0
    for manifest in ("members.tar", "bomb.zip", "rows.pkl"):
        tried += 1
        with pytest.raises(InputError, match=manifest):
            run_pgdpo(*overrides, f"data.train={folder / manifest}")
        held += 1
    clips = (
        "members.tar",
        "bomb.zip",
        "rows.pkl",
        "clip.mp4",
        "../outside.mp4",
        "pipe:touch canary",
        "/etc/passwd",
    )
    clips += ("concat:a|b", "file:///etc/passwd", "tar://clip.mp4::members.tar", "data:video/mp4;base64,AAAA")
    clips += ("subfile,,start,0,end,1,,:/etc/passwd",)
    for clip in clips:
        tried += 1
        row = {"id": "p1", "prompt": "x", "chosen": clip, "rejected": "clip.mp4"}
        (tmp_path / "data/rows.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(InputError, match="p1"):
            run_pgdpo(*overrides, f"data.train={folder / 'rows.jsonl'}")
        held += 1
    (folder / "rows.jsonl").unlink()
    assert sorted(path.name for path in folder.iterdir()) == before
    assert not Path(CANARY).exists() and not Path("escaped.mp4").exists()
    assert not Path("/tmp/escaped-absolute.mp4").exists() and not Path("canary").exists()
    assert not (tmp_path / "fresh/prepared/train/index.json").exists()
    tally(22, tried, held)


def test_a_configuration_is_plain_data(tmp_path, monkeypatch, tally):
    monkeypatch.chdir(tmp_path)
    for text in (
        f"!!python/object/apply:os.system ['touch {CANARY}']",
        f"output_dir: !!python/object/apply:os.system ['touch {CANARY}']",
        f"output_dir: !!python/object/new:subprocess.Popen [['touch', '{CANARY}']]",
    ):
        Path("config.yaml").write_text(text)
        with pytest.raises(InputError, match="config.yaml"):
            load_config("config.yaml")
    with pytest.raises(InputError):
        load_config("quickstart.yaml", [f"output_dir=!!python/object/apply:os.system ['touch {CANARY}']"])
    assert not Path(CANARY).exists()
    tally(22, 4, 4)


def test_a_model_folder_brings_no_code(tmp_path, monkeypatch, config_file, tiny_wan, tally):
    """A pipeline that names classes in files that it brings, and pickled weights in place of safetensors."""
    monkeypatch.chdir(tmp_path)
    module = f"import pathlib\npathlib.Path({str(tmp_path / CANARY)!r}).touch()\nclass Evil: pass\n"
    own = {"AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None], "AutoConfig": "evil.Evil"}

    def custom_classes(folder):
        index = json.loads((folder / "model_index.json").read_text())
        index["text_encoder"] = ["evil", "Evil"]
        (folder / "model_index.json").write_text(json.dumps(index))

    def auto_map(folder):
        for part in ("text_encoder/config.json", "tokenizer/tokenizer_config.json", "vae/config.json"):
            config = json.loads((folder / part).read_text())
            (folder / part).write_text(json.dumps({**config, "auto_map": own}))

    def pickled_weights(folder):
        for weights in (
            folder / "text_encoder/model.safetensors",
            folder / "vae/diffusion_pytorch_model.safetensors",
        ):
            weights.unlink()
            weights.with_name("pytorch_model.bin").write_bytes(zipped())
            weights.with_name("diffusion_pytorch_model.bin").write_bytes(zipped())

    whole = FAMILIES["wan"].save(tmp_path / "whole")
    for number, change in enumerate((custom_classes, auto_map, pickled_weights)):
        folder = shutil.copytree(whole, tmp_path / f"model{number}")
        for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
            (place / "evil.py").write_text(module)
        change(folder)
        try:
            run_pgdpo(
                "prepare",
                config_file,
                f"output_dir={tmp_path / f'out{number}'}",
                f"model.path={folder}",
                "model.encoders=pipeline",
                "data.fps=own",
                "data.num_frames=5",
                "data.toy={train_pairs: 1, held_out_pairs: 1}",
                "data.height=32",
                "data.width=32",
            )
        except Exception as error:  # refused by whom it may
            assert change is not auto_map, error  # which says nothing that is asked for: ignored
        else:
            assert change is auto_map
        assert not (tmp_path / CANARY).exists()
    tally(22, 3, 3)


def test_a_server_that_sends_without_end_is_cut_off(tmp_path, monkeypatch, tally):
    import fsspec

    monkeypatch.setattr("pgdpo.files.locations.MAX_CLIP_BYTES", 3_000_000)
    fsspec.filesystem("memory").pipe_file("/endless.mp4", bytes(5_000_000))
    with pytest.raises(InputError, match=r"memory://endless.mp4: more than 3,000,000 bytes"):
        fetch("memory://endless.mp4", tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    tally(22, 1, 1)


def test_sources_hold_no_call_that_runs_what_it_reads():
    unsafe = re.compile(
        r"\bpickle\.load|\bimport (pickle|dill|cloudpickle|marshal|tarfile|zipfile)\b|\btorch\.load\("
        r"|weights_only\s*=\s*False|allow_pickle\s*=\s*True|yaml\.(unsafe_|full_)?load\(|trust_remote_code\s*=\s*True"
        r"|(?<![.\w])eval\(|(?<![.\w])exec\(|shell\s*=\s*True|os\.(system|popen)\(|extractall\(|unpack_archive\("
    )
    looked = 0
    for folder in ("pgdpo", "kernels", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not unsafe.search(path.read_text(encoding="utf-8")), path
            looked += 1
    assert looked > 100
    for line in (
        "pickle.load(f)",
        "torch.load(p)",
        "yaml.load(x)",
        "eval(x)",
        "import tarfile",
        "a(shell=True)",
    ):
        assert unsafe.search(line)
