"""Install with `pip install -e .`; the tests with `pip install -e ".[test]"`."""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

BUNDLE = "pgdpo_bundled"


class Bundle(build_py):
    """A wheel holds the kernels in a folder of their own, which a .pth file puts at the end of the path.

    At `pgdpo_kernels/` lie the files of the distribution pgdpo-kernels: where it is installed, it is the one that is
    imported, and pip removes either without touching the other's files. An editable install maps the clone's folder.
    """

    def run(self):
        super().run()
        if self.editable_mode:
            return
        library = Path(self.build_lib)
        shutil.rmtree(library / BUNDLE, ignore_errors=True)
        (library / BUNDLE).mkdir()
        (library / "pgdpo_kernels").rename(library / BUNDLE / "pgdpo_kernels")
        (library / BUNDLE / "__init__.py").touch()  # by which pip knows a folder that it may remove
        (library / f"{BUNDLE}.pth").write_text(f"{BUNDLE}\n", encoding="utf-8")


setup(
    name="pgdpo",
    version="0.1.0",
    description="Preference optimisation for video diffusion models on fused Triton kernels",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # `kernels/` itself is no package: Hugging Face publishes one of that name.
    packages=[
        *find_packages(include=["pgdpo", "pgdpo.*"]),
        *find_packages("kernels", include=["pgdpo_kernels", "pgdpo_kernels.*"]),
        "pgdpo.configs",
    ],
    package_dir={
        "pgdpo": "pgdpo",
        "pgdpo_kernels": "kernels/pgdpo_kernels",
        "pgdpo.configs": "configs",
    },
    package_data={
        "pgdpo.configs": ["*.yaml", "cluster/*"],
        "pgdpo": [
            "assets/**/*",
            "models/README.md",
            "report/templates/*.jinja",
            "checking/*.jinja",
            "py.typed",
        ],
        "pgdpo_kernels": ["py.typed"],
    },
    install_requires=[
        "torch>=2.10,<2.14",
        "triton>=3.5",
        "diffusers>=0.38",
        "transformers",
        "deepspeed>=0.19.8",
        "xformers>=0.0.33; platform_system == 'Linux'",
        "peft>=0.17",
        "av>=17",
        "fsspec",
        "pyarrow>=17",
        "numpy",
        "pydantic>=2.11",
        "pyyaml",
        "typer>=0.16",
        "rich>=13",
        "safetensors>=0.5",
        "packaging",
        "psutil",
        "jinja2",
        "matplotlib",
        "tensorboard",
        "ftfy",
        "sentencepiece",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-benchmark",
            "pytest-timeout",
            "pytest-xdist",
            "mypy",
            "hypothesis",
            "scipy",
            "ruff",
            "setuptools>=77",  # wheels are built of this tree, without a network
            "trackio",
        ],
        "wandb": ["wandb"],
        "trackio": ["trackio"],
        "swanlab": ["swanlab"],
        "bench": ["pytest>=8", "pytest-benchmark", "liger-kernel"],
    },
    cmdclass={"build_py": Bundle},
    entry_points={"console_scripts": ["pgdpo=pgdpo.cli:main"]},
)
