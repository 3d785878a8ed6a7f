"""`acestep weights`: fetch a checkpoint, say what it holds, and check that it fits."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from acestep.checkpoint import Checkpoint
    from acestep.layout import LayoutReport

_BIG_BYTES = 1_000_000_000


@click.command(context_settings={"max_content_width": 110})
@click.argument("source")
@click.option("--check", is_flag=True, help="Compare every tensor's name and shape with the networks (reads headers).")
@click.option("--vocab", metavar="PATH_OR_URL", help="The lyric vocabulary, if the checkpoint lacks it.")
@click.option("--to", "target", metavar="FOLDER_OR_URL", help="Write a complete copy there, vocabulary included.")
def command(source: str, check: bool, vocab: str | None, target: str | None) -> None:
    """Fetch the checkpoint SOURCE and say what it holds.

    SOURCE is tiny, a folder, a hub id (ACE-Step/ACE-Step-v1-3.5B, also with @revision) or a URL (s3://bucket/prefix).

    \b
    acestep weights ACE-Step/ACE-Step-v1-3.5B --check
    acestep weights ACE-Step/ACE-Step-v1-3.5B --to s3://bucket/ace-step
    """
    import logging

    from acestep.errors import ACEStepError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("acestep").setLevel(logging.INFO)
    try:
        is_fine = _report(source, check, vocab, target)
    except (ACEStepError, OSError) as error:
        print(f"acestep weights: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if is_fine else 2)


def _report(source: str, check: bool, vocab: str | None, target: str | None) -> bool:
    from acestep.checkpoint import Checkpoint
    from acestep.errors import CheckpointError
    from acestep.layout import check_layout, read_layout

    checkpoint = Checkpoint.open(source, lyric_vocab=vocab)
    layout = check_layout(checkpoint) if check else read_layout(checkpoint)
    print(f"{checkpoint.name}: {checkpoint.path}\n")
    print(_table(layout, "fits" if check else "whole"))
    try:
        _print_identity(checkpoint)
    except CheckpointError as error:
        layout = layout.with_problem(str(error))
    if not layout.ok:
        print(f"\nacestep weights: {layout.explain()}", file=sys.stderr)
    elif target:
        from acestep.upload import copy_checkpoint

        copy_checkpoint(checkpoint, target)
        print(f"\nwritten to {target}")
    return layout.ok


def _print_identity(checkpoint: Checkpoint) -> None:
    print(f"\nlyric vocabulary  {checkpoint.lyric_vocab} ({checkpoint.lyric_vocab_origin})")
    if checkpoint.size_bytes > _BIG_BYTES:
        print("reading every byte once, for the fingerprint ...", file=sys.stderr)
    for dtype in ("bfloat16", "float32"):
        print(f"fingerprint       {checkpoint.fingerprint(dtype)} in {dtype}")
    trained = "random: never trained, what they make is noise" if checkpoint.random_weights else "trained"
    print(f"weights           {trained}")


def _table(layout: LayoutReport, fine: str) -> str:
    from pipelines.quantities import size_text

    rows = [("part", "folder", "files", "size", "dtype", "tensors", "values", "status")]
    for part in layout.parts:
        status = f"{len(part.problems)} problems" if part.problems else fine
        counts = f"{part.num_tensors:,}", f"{part.num_values:,}"
        name = part.part.replace("_", " ")
        rows.append(
            (name, part.folder, str(part.num_files), size_text(part.size_bytes), "+".join(part.dtypes), *counts, status)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numeric = {2, 3, 5, 6}
    lines = [
        "  ".join(
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    command()
