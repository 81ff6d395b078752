"""The pages point to what is there, say nothing twice, and their configurations and Python run."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from pgdpo.config.read import load_config
from pgdpo.rows.schema import flaws
from tests.house.test_layers import ROOMS
from tests.pages.book import FENCE, LINK, ROOT, all_blocks, anchors, blocks, pages, repeated
from tests.worlds import share_pairs, write_config

PAGES = pages()
LANGUAGES = {"", "json", "python", "toml", "yaml"}  # of blocks; a test looks into each


@pytest.mark.quick
@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for target, anchor in LINK.findall(FENCE.sub("", PAGES[page])):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor[1:] in anchors(file.read_text(encoding="utf-8")), target + anchor


@pytest.mark.quick
def test_no_sentence_stands_in_two_places():
    assert repeated(PAGES) == {}


@pytest.mark.quick
def test_a_sentence_in_two_places_is_seen():
    """Across line breaks, lists and paragraphs; not in code, tables and headings."""
    said = (
        "This sentence is long enough that somebody who reads it twice\nwould wonder which of the two holds."
    )
    other = f"# {said.split(chr(10))[0]}\n\n```\n{said}\n```\n\n| {' '.join(said.split())} |\n"
    assert repeated({"a": f"Before it. {said} After it.", "b": other}) == {}
    twice = repeated(
        {"a": f"Before it. {said} After it.", "b": f"- short\n- {' '.join(said.split())}\n- short"}
    )
    assert list(twice.values()) == [["a", "b"]]


@pytest.mark.quick
def test_every_language_is_looked_into():
    languages = {block.language for page, text in PAGES.items() for block in blocks(page, text)}
    assert languages <= LANGUAGES
    assert all(
        text.count("\n```") + text.startswith("```") == 2 * len(FENCE.findall(text))
        for text in PAGES.values()
    )


@pytest.mark.quick
def test_rows_are_rows():
    found = [line for block in all_blocks("json") for line in block.text.splitlines()]
    assert found
    for line in found:
        assert list(flaws(json.loads(line))) == [], line


@pytest.mark.quick
@pytest.mark.parametrize("block", all_blocks("yaml") + all_blocks("yaml", placed=True), ids=str)
def test_parts_of_configurations_are_read(block, tmp_path):
    """By our own reader, with what a configuration needs besides."""
    if "family: skyreels_v2" in block.text:
        pytest.skip("its family is added by the page: the slow test of tests/pages/test_adding.py reads it")
    file = write_config(tmp_path / "config.yaml", tmp_path / "out", tmp_path / "model")
    whole = yaml.safe_load(file.read_text(encoding="utf-8"))
    for section, values in yaml.safe_load(block.text).items():
        assert section in whole or section in ("diffusion", "study"), section
        whole[section] = {**whole[section], **values} if isinstance(values, dict) else values
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    load_config(file)


def test_python_runs(world, tmp_path, monkeypatch, eager_kernels):
    """Beside a small prepared world of the quickstart's name; a `transformer` is a tiny one of Wan's class."""
    from diffusers import WanTransformer3DModel

    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "quickstart.yaml", share_pairs(tmp_path, world), world / "tiny_wan")
    found = all_blocks("python")
    assert any("Trainer" in block.text for block in found)
    for block in found:
        transformer = WanTransformer3DModel.from_pretrained(world / "tiny_wan", subfolder="transformer")
        exec(compile(block.text, str(block), "exec"), {"transformer": transformer})
    assert list((tmp_path / "out").glob("*/checkpoints/step-00000002/manifest.json"))


@pytest.mark.quick
def test_the_house_has_the_rooms_that_its_page_shows():
    shown = re.findall(r"^\| \[[^]]+\]\((\w+)(?:/|\.py)\) \|", PAGES["pgdpo/README.md"], re.MULTILINE)
    assert tuple(shown) == ROOMS


@pytest.mark.quick
def test_the_way_of_the_data_names_what_is_there():
    steps = re.findall(r"^\| .* \| (`.+`) \| \[.*\]\((\S+)\) \|$", PAGES["pgdpo/README.md"], re.MULTILINE)
    assert len(steps) > 12
    for names, target in steps:
        place = ROOT / "pgdpo" / target
        files = [place] if place.is_file() else place.glob("*.py")
        code = "".join(file.read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", names):
            assert re.search(rf"^\s*(def|class) {name}\b", code, re.MULTILINE), f"{target} has no {name}"


def test_help_and_import_need_no_torch():
    code = (
        "import sys, contextlib, pgdpo\n"
        "from pgdpo.cli import app\n"
        "with contextlib.suppress(SystemExit): app(['--help'])\n"
        "heavy = {'torch', 'diffusers', 'deepspeed', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for command in ("prepare", "train", "evaluate", "export", "quickstart"):
        assert command in done.stdout


def test_the_top_level_is_what_was_agreed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {line.split("/")[0] for line in tracked.splitlines()}
    assert {name for name in top if not name.startswith(".")} == {
        "kernels", "pgdpo", "benchmarks", "tests", "configs", "setup.py", "pyproject.toml", "README.md",
        "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
    }  # fmt: skip
    assert not (ROOT / "kernels" / "__init__.py").exists()
