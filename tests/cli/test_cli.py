"""Every command explains itself: help, an example, a word on each option; the keys' table is the schema's."""

from pathlib import Path

import pytest
import typer

from pgdpo.cli import app
from pgdpo.config import options
from pgdpo.messages.errors import InputError
from tests.worlds import run_pgdpo

pytestmark = pytest.mark.quick

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_explains_every_parameter(name):
    command = COMMANDS[name]
    if name != "version":
        assert f"pgdpo {name}" in command.help.split("Example:")[1]
    for parameter in command.params:
        shown = getattr(parameter, "help", None)
        assert shown or parameter.name == "help", f"{name}: {parameter.name} has no help"


def test_the_commands_that_a_user_looks_for_are_there():
    wanted = "doctor check import make curate prepare reference train evaluate export report bench objectives options"
    assert set(wanted.split()) <= set(COMMANDS)


def test_every_key_has_a_description_and_a_type():
    rows = list(options.keys())
    assert len(rows) > 100
    for key, field in rows:
        assert field.description, f"{key} has no description"
    assert "| section |" not in options.markdown()


def test_keys_are_found_by_a_part_of_their_name():
    run_pgdpo("options", "gradient_checkpointing")
    with pytest.raises(InputError, match="no key holds 'gradient_chekpointing'"):
        run_pgdpo("options", "gradient_chekpointing")


def test_shell_completion_is_offered():
    from typer.testing import CliRunner

    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


def test_the_document_of_all_keys_is_the_schemas():
    """`pgdpo options --markdown > configs/OPTIONS.md` after a key was added or changed."""
    written = (Path(__file__).parents[2] / "configs" / "OPTIONS.md").read_text(encoding="utf-8")
    assert written == options.markdown()
