"""The layout for Hugging Face's kernel hub: laid out, loaded beside an installed version, published.

What the hub asks for: https://huggingface.co/docs/kernels/kernel-requirements
"""

import base64
import hashlib
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import pgdpo_kernels

HUB = Path(__file__).resolve().parents[2] / "kernels" / "hub"
REPO = "me/pgdpo-kernels"
PAGE = f"https://huggingface.co/kernels/{REPO}"

pytest.importorskip("tomllib", reason="kernels/hub/publish.py reads TOML: Python 3.11")
spec = importlib.util.spec_from_file_location("publish", HUB / "publish.py")
publish = importlib.util.module_from_spec(spec)
spec.loader.exec_module(publish)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "project"
    publish.lay_out(folder, REPO)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """The project of another version."""
    folder = tmp_path_factory.mktemp("other")
    shutil.copytree(publish.PACKAGE, folder / "pgdpo_kernels", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pgdpo_kernels" / "version.py").write_text('__version__ = "0.0.9"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "PACKAGE", folder / "pgdpo_kernels")
        publish.lay_out(folder / "project", REPO)
    return folder / "project"


def load(variant: Path):
    """As `kernels` 0.17 imports a variant: its `__init__.py`, under the name that its metadata calls `id`."""
    name = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_public_names_and_the_version_are_explicit():
    assert re.fullmatch(r"\d+\.\d+\.\d+", pgdpo_kernels.__version__)
    assert "__version__" in pgdpo_kernels.__all__ == sorted(set(pgdpo_kernels.__all__))
    for name in pgdpo_kernels.__all__:
        assert getattr(pgdpo_kernels, name) is not None


@pytest.mark.parametrize("backend", ["cpu", "cuda", "rocm"])
def test_a_variant_is_the_package_with_metadata_and_a_namespace(project, backend):
    variant = project / "build" / f"torch-{backend}"
    metadata = json.loads((variant / "metadata.json").read_text())
    assert (metadata["name"], metadata["backend"]) == ("pgdpo-kernels", {"type": backend})
    assert metadata["version"] == 1 and metadata["license"] == "Apache-2.0"
    assert re.fullmatch(rf"_pgdpo_kernels_{backend}_[0-9a-f]{{10}}", metadata["id"])
    assert f'"{metadata["id"]}"' in (variant / "_ops.py").read_text()
    files = {
        path.relative_to(variant).as_posix(): path.read_bytes()
        for path in variant.rglob("*.*")
        if path.is_file()
    }
    del files["metadata.json"]
    sums = {name: base64.b64encode(hashlib.sha256(text).digest()).decode() for name, text in files.items()}
    assert metadata["digest"] == {"algorithm": "sha256", "files": sums}
    package = Path(pgdpo_kernels.__file__).parent
    assert set(files) == {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert all(files[name] == (package / name).read_bytes() for name in files if name != "_ops.py")


def test_the_project_is_one_that_kernel_builder_takes(project):
    """It writes `_ops.py` itself and refuses a tree that has one; a link to the sources it would leave out."""
    names = {path.name for path in project.iterdir()}
    assert names == {"CARD.md", "build", "build.toml", "flake.nix", "torch-ext"}
    assert all(path.is_dir() for path in (project / "build").iterdir())
    sources = project / "torch-ext" / "pgdpo_kernels"
    assert (sources / "__init__.py").is_file() and not (sources / "_ops.py").exists()
    assert not any(path.is_symlink() or path.name == "pgdpo_kernels" for path in sources.rglob("*"))
    assert "{{" not in (project / "CARD.md").read_text() and REPO in (project / "CARD.md").read_text()


def test_equal_sources_have_equal_names_and_others_others(project, other, tmp_path):
    again = publish.lay_out(tmp_path / "again", REPO)
    assert again["torch-cpu"] in (project / "build" / "torch-cpu" / "_ops.py").read_text()
    assert again["torch-cpu"] not in (other / "build" / "torch-cpu" / "_ops.py").read_text()


def test_two_versions_and_the_installed_one_work_in_one_process(project, other):
    kernels = [load(folder / "build" / "torch-cpu") for folder in (project, other)]
    assert [kernel.__version__ for kernel in kernels] == [pgdpo_kernels.__version__, "0.0.9"]
    pred, target, ref = torch.randn(3, 4, 2, 3, 5)
    want = pgdpo_kernels.diffusion_dpo_loss(pred, target, ref, beta=5.0)
    for kernel in kernels:
        assert torch.equal(kernel.diffusion_dpo_loss(pred, target, ref, beta=5.0).loss, want.loss)
        assert (
            getattr(torch.ops, kernel.__name__).preference.default
            != torch.ops.pgdpo_kernels.preference.default
        )
    first, second = (getattr(torch.ops, kernel.__name__).preference.default for kernel in kernels)
    assert first != second


def test_a_kernel_of_the_hub_takes_over_a_model_and_gives_it_back(project, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "ops")
    from tiny_models import build

    kernel = load(project / "build" / "torch-cuda")
    model, inputs = build("wan")
    plain = model(**inputs)[0]
    block = model.blocks[0]
    pgdpo_kernels.apply_to(model, strict=True)
    ours = block.forward.__func__
    assert kernel.apply_to(model, strict=True)
    assert block.forward.__func__ is not ours
    torch.testing.assert_close(model(**inputs)[0], plain, rtol=1e-5, atol=1e-6)
    pgdpo_kernels.revert(model)
    assert "forward" not in block.__dict__ and torch.equal(model(**inputs)[0], plain)


@pytest.mark.parametrize(
    ("folder", "repo", "message"), [("full", REPO, "empty folder"), ("new", "me", "OWNER/NAME")]
)
def test_wrong_use_is_told(tmp_path, folder, repo, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match=message):
        publish.lay_out(tmp_path / folder, repo)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub's API as an upload of small files asks for; what every commit does to which path is kept."""

    commits: dict[str, list[set[tuple[str, str]]]] = {}
    posted: list[str] = []

    def answer(self, content) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        there = ("README.md", "build/torch-cpu/gone.py")
        tree = [{"type": "file", "path": path, "size": 1, "oid": "a" * 40} for path in there]
        self.answer(tree if "/tree/v1" in self.path else [])

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.posted.append(self.path)
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            rows = [json.loads(line) for line in body.splitlines()]
            done = {(row["key"], row["value"].get("path", "")) for row in rows} - {("header", "")}
            self.commits.setdefault(self.path.rpartition("/")[2], []).append(done)
            self.answer({"commitUrl": f"{PAGE}/commit/{'a' * 40}", "commitOid": "a" * 40})
        else:
            self.answer({"url": PAGE})

    def log_message(self, *_):
        pass


def test_an_upload_is_one_commit_to_the_versions_branch_and_the_card_on_main(project):
    """Over HTTP, to a Hub of this test: nothing here can show that the real one takes it."""
    from huggingface_hub import HfApi

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        api = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_token")
        publish.upload(api, project, REPO, "v1")
    finally:
        server.shutdown()
    assert f"/api/kernels/{REPO}/branch/v1" in Hub.posted
    assert Hub.commits["main"] == [{("file", "README.md")}]
    files = (path for path in (project / "build").rglob("*") if path.suffix in (".py", ".json"))
    built = {("file", path.relative_to(project).as_posix()) for path in files}
    assert Hub.commits["v1"] == [built | {("deletedFile", "build/torch-cpu/gone.py")}]  # one commit, at once


def test_hugging_faces_own_tooling_reads_and_loads_it(project):
    """Its parser of build.toml, of metadata.json, its digests, and its loader."""
    kernels = pytest.importorskip("kernels.load", reason="pip install kernels")
    tools = pytest.importorskip("kernels._rust")
    assert len(tools.Build.open(project).general.backends) == 3
    for variant in (project / "build").iterdir():
        metadata = tools.Metadata.read_from_file(variant / "metadata.json")
        metadata.digest.validate(tools.Digest.hash_variant(metadata.digest.algorithm, variant))
    kernel = kernels.get_local_kernel(project)
    assert kernel.__name__.startswith("_pgdpo_kernels_") and kernel is not pgdpo_kernels


def test_without_a_token_the_script_says_what_it_would_upload(tmp_path, monkeypatch):
    pytest.importorskip("kernels.load", reason="pip install kernels")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    command = [sys.executable, HUB / "publish.py", REPO, "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    for fact in ("HF_TOKEN=... uploads", "torch-cuda", "branch v1 of me/pgdpo-kernels"):
        assert fact in done.stderr
