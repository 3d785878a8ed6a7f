"""`acestep plan`: judge a manifest, write the plan, and say what it will take and cost; nothing is made."""

from __future__ import annotations

import json
import sys

import click


@click.command(context_settings={"max_content_width": 110})
@click.option("--manifest", required=True, help="Parquet, JSONL or CSV with id and prompt: file, folder, glob or URL.")
@click.option("--output", required=True, help="Folder or URL of the catalog; the plan is written there.")
@click.option("--config", help="YAML file; see configs/.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="An option of the config; may be repeated.")
@click.option("--gpus", metavar="N[,N]", help="Numbers of GPUs to estimate for, such as 8,64,256.")
@click.option("--device", help="GPU to estimate for, such as 'NVIDIA H100' (budget.device).")
@click.option("--price", type=float, help="Of a GPU for an hour, in any currency (budget.price_per_gpu_hour).")
@click.option("--max-cost", type=float, help="Refuse a job estimated to cost more (budget.max_cost).")
@click.option("--max-hours", type=float, help="Refuse a job estimated to run longer (budget.max_hours).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(
    manifest: str,
    output: str,
    config: str | None,
    overrides: tuple[str, ...],
    gpus: str | None,
    device: str | None,
    price: float | None,
    max_cost: float | None,
    max_hours: float | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Judge every row of a manifest, write the plan, and estimate what it will take; nothing is made.

    Times and costs come from what was measured of this model on this device, in this catalog, on this machine, or
    shipped; where nobody measured, they are modelled, and say so.

    Ends with 0 when every row can be made, 3 when some were refused, 2 when manifest, config or output cannot be used
    or the job is over its budget. With several numbers of GPUs, one that is within the budget is enough.

    \b
    acestep plan --manifest songs.parquet --output out --config configs/acestep_v1.yaml \\
        --device "NVIDIA H100" --gpus 8,64,256 --price 2.5 --max-cost 1000
    """
    from jobs.log import exit_codes, start_logging

    start_logging(verbose)
    numbers = _numbers(gpus)
    from pipelines.config import RunConfig
    from pipelines.estimate import estimate_of
    from pipelines.preparation import prepare
    from pipelines.rejects import preflight_table

    options = {
        "budget.device": json.dumps(device) if device else None,
        "budget.price_per_gpu_hour": price,
        "budget.max_cost": max_cost,
        "budget.max_hours": max_hours,
    }
    overrides += tuple(f"{name}={value}" for name, value in options.items() if value is not None)
    with exit_codes("plan"):
        loaded = RunConfig.load(config, overrides)
        with prepare(loaded, manifest, output) as prepared:
            estimate, plan = estimate_of(prepared, numbers), prepared.plan
        if as_json:
            facts = {"rules": plan.rules, "examples": plan.examples, "warned": plan.warned}
            print(json.dumps({**estimate.as_dict(), "preflight": facts}, indent=2))
        else:
            print("\n".join(part for part in (preflight_table(plan.rules, plan.examples), estimate.text()) if part))
        estimate.refuse_over(loaded.budget)
    sys.exit(3 if estimate.refused else 0)


def _numbers(text: str | None) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")] if text else []
        if any(not 0 < number < float("inf") for number in numbers):
            raise ValueError
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not allowed; it must be like 8 or 8,64,256", param_hint="--gpus"
        ) from None
    return numbers


if __name__ == "__main__":
    command()
