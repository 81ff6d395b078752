"""Whatever a later command refuses, `pgdpo check` refuses first with the same words, or a table says why not."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Iterator

import pytest

from pgdpo.checking import run_check
from pgdpo.config.read import load_config
from pgdpo.messages.errors import InputError
from tests.refusals.entries import By, Why
from tests.refusals.inputs import INPUTS
from tests.refusals.making import Place
from tests.refusals.sites import Site, reachable_sites
from tests.refusals.table import TABLE
from tests.worlds import run_pgdpo

CALLERS = 4  # frames between a `raise` and the error that it makes: a function that makes it, a subclass

TEACH = """
`prepare`, `train`, `evaluate` or `reference` can refuse an input at these places, and tests/refusals/table.py doesn't
say whether `pgdpo check` refuses it first. Add to TABLE:

{lines}

The key is a part of the message that no other raise of the function has, and that `check` says too (`says=` names other
words where it has its own). The input is a small real one that the command refuses there: write it into
tests/refusals/inputs.py, and give it to `check` as well; where that says nothing, let it call the function that raises.
Where no check can foresee it, the reason stands in place of By(...):

{reasons}
"""


@functools.cache
def entries() -> dict[tuple[str, str, str], By | Why]:
    return {
        (module, function, part): entry
        for module, functions in TABLE.items()
        for function, parts in functions.items()
        for part, entry in parts.items()
    }


def belongs(key: tuple[str, str, str], site: Site) -> bool:
    module, function, part = key
    return (module, function) == (site.module, site.function) and part in f"{site.text}$"


def taught(missing: list[Site]) -> str:
    lines = (
        f"    {site.module!r}, {site.function!r}: {{{json.dumps(site.text, ensure_ascii=False)}: By('an input')}}"
        f"  # {site.file.name}:{site.lines.start}"
        for site in missing
    )
    reasons = (f"    Why.{why.name}: {why.value}" for why in Why)
    return TEACH.format(lines="\n".join(lines), reasons="\n".join(reasons))


@pytest.mark.quick
def test_every_refusal_is_held_against_check():
    """Raises that are new, raises that are gone, and raises that one line cannot tell apart."""
    sites, keys = reachable_sites(), entries()
    missing = [site for site in sites if not any(belongs(key, site) for key in keys)]
    assert not missing, taught(missing)
    texts = {key: {site.text for site in sites if belongs(key, site)} for key in keys}
    gone = [key for key in keys if not texts[key]]
    assert not gone, f"no raise says this any more, take it out of TABLE: {gone}"
    several = [key for key in keys if len(texts[key]) > 1]
    assert not several, f"several raises have this in their message, take more words of the one: {several}"
    used = {name for entry in keys.values() if isinstance(entry, By) for name in entry.inputs}
    assert used == set(INPUTS), (
        f"inputs without a line: {set(INPUTS) - used}, without an input: {used - set(INPUTS)}"
    )


@contextlib.contextmanager
def recorded(patch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, list[tuple[str, int]]]]]:
    """(message, where it was made) of every InputError inside, also of those that were caught."""
    made, plain = [], InputError.__init__

    def init(self, *arguments):
        plain(self, *arguments)
        frames, frame = [], sys._getframe(1)
        while frame is not None and len(frames) < CALLERS:
            frames.append((frame.f_code.co_filename, frame.f_lineno))
            frame = frame.f_back
        made.append((str(self), frames))

    with patch.context() as inside:
        inside.setattr(InputError, "__init__", init)
        yield made


@pytest.mark.parametrize("name", INPUTS)
def test_check_says_it_first(name, world, saved, tmp_path, monkeypatch):
    given, place = INPUTS[name], Place(tmp_path, world, saved, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "torch.cuda.is_available", lambda: False
    )  # what is lacking is a warning without a GPU
    config, overrides = given.config or place.config, given.build(place)
    with recorded(monkeypatch) as made, pytest.raises(InputError):
        if isinstance(given.by, str):
            run_pgdpo(given.by, config, *overrides)
        else:
            given.by(load_config(config, overrides))
    findings = run_check(str(config), overrides)
    assert findings.exit_code == (2 if given.says == "error" else 0)
    said = [str(problem) for problem in findings.problems if problem.severity == given.says]
    said += findings.skipped if given.says == "note" else []
    for key, entry in entries().items():
        if isinstance(entry, By) and name in entry.inputs:
            sites = [site for site in reachable_sites() if belongs(key, site)]
            messages = [text for text, frames in made if any(at(site, frames) for site in sites)]
            assert messages, f"{given.by} doesn't refuse it in {key}"
            words = entry.words(key[2])
            assert any(all(word in text for word in words) for text in messages), (words, messages)
            assert any(all(word in text for word in words) for text in said), (words, said)


def at(site: Site, frames: list[tuple[str, int]]) -> bool:
    return any(file == str(site.file) and line in site.lines for file, line in frames)
