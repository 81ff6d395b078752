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


def test_keys_are_found_by_name_and_description_those_by_name_first(capsys):
    run_pgdpo("options", "Checkpoint")
    found = capsys.readouterr().out
    heads = [
        line for line in found.splitlines() if line.startswith("in ") or "  " in line.strip()
    ]  # others are wrapped
    shown = [line.split()[0] for line in heads if not line.startswith(" ")]
    known = dict(options.keys())
    by_name = [key for key in known if "checkpoint" in key]
    told = [key for key, field in known.items() if "checkpoint" in field.description.lower()]
    assert len(by_name) > 2 and len(set(told) - set(by_name)) > 2
    assert shown == [*by_name, "in", *(key for key in told if key not in by_name)]
    run_pgdpo("options", "activation_offload")
    assert "in descriptions" not in capsys.readouterr().out


def test_a_word_that_no_key_holds_comes_with_the_nearest_keys():
    with pytest.raises(
        InputError, match="holds 'gradient_chekpointing'; nearest: model.gradient_checkpointing"
    ):
        run_pgdpo("options", "gradient_chekpointing")
    with pytest.raises(InputError, match="holds 'zzzzq'; `pgdpo options` lists all"):
        run_pgdpo("options", "zzzzq")


def typed(*arguments: str) -> str:
    """What a terminal of 80 columns shows, frames left out, after a command that ends with 2."""
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert done.exit_code == 2
    return " ".join(done.output.replace("│", " ").split())


def test_the_commands_stand_in_the_order_of_the_road():
    shown = typed()
    panels = [shown.index(f"─ {panel} ─") for panel in ("Begin", "Data", "Train", "Look", "Tools")]
    assert panels == sorted(panels)
    assert shown.index("─ Begin ─") < shown.index("quickstart The whole way") < shown.index("─ Data ─")
    for command in COMMANDS.values():
        assert command.rich_help_panel.lower() in (command.callback.__module__.split(".")[-1], "begin")


def test_what_lacks_is_said_with_what_it_is_and_an_example():
    assert "Missing argument 'CONFIG'. YAML file, or the name" in typed("train")
    assert "Example: torchrun --nproc-per-node 8 -m pgdpo train" in typed("train")
    assert "GPUs over all nodes. Example: pgdpo plan" in typed("plan", "quickstart.yaml", "--gpus", "0")
    assert "Did you mean 'train'?" in typed("trian")


def test_shell_completion_is_offered():
    from typer.testing import CliRunner

    assert "--install-completion" in CliRunner().invoke(app, ["--help"]).output


def test_the_document_of_all_keys_is_the_schemas():
    """`pgdpo options --markdown > configs/OPTIONS.md` after a key was added or changed."""
    written = (Path(__file__).parents[2] / "configs" / "OPTIONS.md").read_text(encoding="utf-8")
    assert written == options.markdown()
