"""`acestep train`: a checkpoint and data in, a trained checkpoint or an adapter out."""

from __future__ import annotations

import click

from jobs.log import exit_codes, start_logging


@click.command(context_settings={"max_content_width": 110})
@click.option("--output", required=True, help="Folder or URL of states, metrics and what is trained.")
@click.option("--config", help="YAML file; see configs/train.yaml.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="An option of the config; may be repeated.")
@click.option("--part", type=click.Choice(["transformer", "autoencoder", "vocoder", "lora"]), help="What is trained.")
@click.option("--checkpoint", help="To begin with: tiny, a folder, a hub id or a URL.")
@click.option("--data", "data", multiple=True, help="Outputs of `acestep prepare`; may be repeated.")
@click.option("--address", help="Ray cluster, such as auto or host:port. [default: RAY_ADDRESS, else this machine]")
@click.option("--local", is_flag=True, help="In this process, without Ray.")
@click.option("--device", help="With --local: cpu, cuda, mps. [default: the best there is]")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def command(
    output: str,
    config: str | None,
    overrides: tuple[str, ...],
    part: str | None,
    checkpoint: str | None,
    data: tuple[str, ...],
    address: str | None,
    local: bool,
    device: str | None,
    verbose: bool,
) -> None:
    """Train a part of a checkpoint, or an adapter (LoRA) for it.

    Run the same command again to go on from the newest state after a crash. In the end, OUTPUT holds checkpoint/, a
    whole one in the published layout, or lora/; states/, metrics.jsonl and tensorboard/ are there all the time.

    Ends with 0 when the last step was taken, 2 when config, data, checkpoint or output cannot be used, 4 when the
    training ended early (start it again), 130 after Ctrl-C.

    \b
    acestep prepare --synth 1000 --output out/data
    acestep train --data out/data --output out/training --config configs/train.yaml --local
    """
    start_logging(verbose)
    given = {"part": part, "start.checkpoint": checkpoint, "ray.address": address}
    overrides += tuple(f"{name}={value}" for name, value in given.items() if value is not None)
    if data:
        overrides += (f"data.songs=[{', '.join(map(repr, data))}]",)
    with exit_codes("train"):
        from acestep.device import best_device
        from pipelines.errors import UnusableInputError
        from pipelines.training.config import TrainingConfig
        from pipelines.training.job import run_training

        try:
            chosen = str(best_device(device)) if local else "cpu"
        except ValueError as error:
            raise UnusableInputError(str(error)) from error
        place = run_training(TrainingConfig.load(config, overrides), output, local=local, device=chosen)
        print(f"trained: {place}")


if __name__ == "__main__":
    command()
