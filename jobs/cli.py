"""`acestep`: one command for each file beside this one. A command's file is imported when it is called, not before."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

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
    "prepare": "Encode music to data that a model can be trained on.",
    "train": "Train a part of a model, or an adapter, on this machine or a Ray cluster.",
    "report": "Write a page about a catalog, with players and pictures.",
    "export": "Deliver a catalog as Hugging Face Parquet, WebDataset, audiofolder or JSONL.",
    "serve": "Serve the HTTP API and a page to make songs on, on this machine.",
    "song": "Make one song from a prompt, on this machine.",
    "evaluate": "Judge whether what a model makes is what its prompts say.",
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"max_content_width": 110}, invoke_without_command=True)
@click.version_option(__version__, prog_name="acestep")
@click.option("--port", type=int, help="Of the page. [default: 7865]")
@click.option("--server_name", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--checkpoint_path", help="tiny, a folder, a hub id or an fsspec URL. [default: tiny]")
@click.option("--device_id", type=int, help="Which GPU.")
@click.option("--bf16", type=bool, help="bfloat16 (true) or float32 (false).")
@click.option("--torch_compile", type=bool, help="Compile the transformer.")
@click.option("--cpu_offload", type=bool, help="Less GPU memory, slower.")
@click.pass_context
def main(context: click.Context, **options: Any) -> None:
    """Music from text with ACE-Step v1: one song, a server, or a catalog of millions on Ray.

    `acestep COMMAND --help` says more. Without a command it serves the page, as `acestep serve` does; the options here
    are those of the model's own app.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if context.invoked_subcommand is not None:
        if given:
            raise click.UsageError(
                f"--{next(iter(given))} goes without a command; see `acestep {context.invoked_subcommand} --help`"
            )
        return
    from jobs.serve import start

    settings = {"torch_compile": "model.torch_compile", "cpu_offload": "model.cpu_offload"}
    overrides = [f"{setting}={given[name]}" for name, setting in settings.items() if name in given]
    if "bf16" in given:
        overrides.append(f"model.dtype={'bfloat16' if given['bf16'] else 'float32'}")
    if "device_id" in given:
        overrides += [f"model.device=cuda:{given['device_id']}", "resources.num_gpus=1"]
    start(
        overrides=tuple(overrides),
        checkpoint=given.get("checkpoint_path"),
        host=given.get("server_name"),
        port=given.get("port"),
    )


if __name__ == "__main__":
    main()
