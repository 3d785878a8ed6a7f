"""`acestep`: one command for each file beside this one. A command's file is imported when it is called, not before."""

from __future__ import annotations

import importlib

import click

from acestep import __version__

COMMANDS = {
    "plan": "Judge a manifest and say what making its songs will take and cost.",
    "generate": "Make every song of a manifest, on this machine or a Ray cluster.",
    "status": "Say where the run of a catalog stands, from any machine.",
    "retry": "Make songs of a catalog again that failed.",
    "verify": "Check that every song of a catalog is there and whole.",
    "sweep": "List, then delete, files of a catalog that no song names.",
    "compact": "Merge a catalog's many small row files into one a bucket.",
    "report": "Write a page about a catalog, with players and pictures.",
    "export": "Deliver a catalog as Hugging Face Parquet, WebDataset, audiofolder or JSONL.",
    "song": "Make one song from a prompt, on this machine.",
    "weights": "Look at a checkpoint, or bring a complete one to a folder.",
}
"""Names and one line each, kept here so that `--help` need not import the commands and what they need."""


class LazyGroup(click.Group):
    """A group whose commands are the `command` objects of `jobs.<name>`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"jobs.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="acestep")
def main() -> None:
    """Music from text with ACE-Step v1: one song, or a catalog of millions on Ray.

    `acestep COMMAND --help` says more.
    """


if __name__ == "__main__":
    main()
