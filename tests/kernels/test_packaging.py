"""The kernels' folder can be published and imported on its own."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "kernels" / "pgdpo_kernels"


def test_the_folder_is_no_package():
    """Hugging Face publishes a package `kernels`, which transformers and diffusers import: ours must not hide it."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_it_needs_torch_and_triton_alone():
    """By absolute import; its own modules import each other relatively. `patch/` may import diffusers."""
    allowed = {"torch", "triton"} | set(sys.stdlib_module_names)
    for path in PACKAGE.rglob("*.py"):
        extra = {"diffusers"} if "patch" in path.relative_to(PACKAGE).parts else set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            unknown = {name.split(".")[0] for name in names} - allowed - extra
            assert not unknown, (path.name, unknown)


def test_importing_it_imports_nothing_beyond_torch_and_triton():
    """In a fresh process: no diffusers, no transformers, beyond torch the standard library at most."""
    code = (
        "import sys, json, torch, triton; before = set(sys.modules); import pgdpo_kernels;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "kernels")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    added = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "pgdpo_kernels" in added and added - {"pgdpo_kernels"} <= set(sys.stdlib_module_names)


def test_its_licence_is_the_repositorys():
    """A copy, for a distribution's sources must hold it."""
    assert (ROOT / "kernels" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
