"""`acestep verify`: is every song there, whole, and as its row says?"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from jobs.log import exit_codes, start_logging
from jobs.output_options import lease_for, open_output, output_options

if TYPE_CHECKING:
    from pipelines.verification import VerifyReport

EXAMPLES = 5


@click.command(context_settings={"max_content_width": 110})
@output_options
@click.option("--deep", is_flag=True, help="Decode every song, too: its length, and that its samples are numbers.")
@click.option("--checksum/--no-checksum", default=True, help="Off: only look at sizes, which reads no song.")
@click.option("--threads", default=16, show_default=True, help="Songs read at the same time.", type=click.IntRange(1))
@click.option(
    "--repair", is_flag=True, help="Withdraw the rows of faulty songs, so that the next run makes them again."
)
@click.option("--json", "as_json", is_flag=True, help="For programs, with every fault.")
def command(
    output: str,
    config: str | None,
    overrides: tuple[str, ...],
    deep: bool,
    checksum: bool,
    threads: int,
    repair: bool,
    as_json: bool,
) -> None:
    """Compare every row of the catalog OUTPUT with its objects, and the plan with the rows.

    Ends with 0 when all is as the rows say, 3 when something is not, 2 when there is no catalog. A song of the plan
    that is not made yet is counted, and no fault.

    \b
    acestep verify out
    acestep verify s3://bucket/catalog --no-checksum --set "storage.storage_options={endpoint_url: http://host:9000}"
    """
    start_logging()
    with exit_codes("verify"):
        from contextlib import nullcontext

        from tqdm import tqdm

        from pipelines.verification import verify, withdraw

        storage, settings = open_output(output, config, overrides)
        withdrawn = None
        with lease_for("verify --repair", storage, settings) if repair else nullcontext() as lease:
            with tqdm(unit="song", disable=not sys.stderr.isatty(), leave=False) as bar:
                report = verify(storage, deep=deep, checksum=checksum, threads=threads, on_progress=bar.update)
            if lease is not None:
                withdrawn = withdraw(storage, report.faults, "verify", lease.check)
        print(json_of(report, withdrawn) if as_json else text_of(report, withdrawn, storage.url))
        sys.exit(report.exit_code)


def text_of(report: VerifyReport, withdrawn: int | None, output: str) -> str:
    """For a person: counts, and the first few faults of each kind."""
    from pipelines.quantities import size_text

    beyond = f"; {report.beyond_plan:,} that the plan does not have" if report.beyond_plan else ""
    lines = [
        f"{output}: {report.songs:,} songs, {size_text(report.bytes)}{beyond}",
        f"plan: {report.planned:,} songs, {report.made:,} made, {report.failed:,} failed, {report.missing:,} missing",
    ]
    if report.duplicates:
        lines.append(f"{report.duplicates:,} rows are there twice, which is harmless; `acestep compact` ends it")
    if not report.faults:
        return "\n".join([*lines, "everything is as the rows say"])
    lines.append(f"{len(report.faults):,} faults:")
    for kind, count in report.kinds.most_common():
        faults = [fault for fault in report.faults if fault.kind == kind][:EXAMPLES]
        lines += [f"  {kind}: {count:,}", *(f"    {fault}" for fault in faults)]
        lines += [f"    ... and {count - len(faults):,} more (--json lists all)"] if count > len(faults) else []
    if withdrawn is None:
        lines.append("--repair withdraws these rows, so that the next run makes the songs again")
    else:
        lines.append(f"{withdrawn:,} songs withdrawn: the next run makes those that are planned")
    return "\n".join(lines)


def json_of(report: VerifyReport, withdrawn: int | None) -> str:
    """For programs."""
    names = ("songs", "bytes", "duplicates", "planned", "made", "failed", "missing", "beyond_plan")
    faults = [
        {"id": each.id, "fingerprint": each.fingerprint, "path": each.path, "kind": each.kind, "what": each.what}
        for each in report.faults
    ]
    counts = {name: getattr(report, name) for name in names}
    return json.dumps({**counts, "kinds": dict(report.kinds), "withdrawn": withdrawn, "faults": faults}, indent=2)


if __name__ == "__main__":
    command()
