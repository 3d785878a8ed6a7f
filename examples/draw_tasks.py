"""Draws spectrograms of a recording and of what repaint, extend and edit make of it.

    python examples/draw_tasks.py recording.mp3 tasks.png [--checkpoint tiny]

Needs matplotlib (in the `dev` extra). The recording is cut to its first 12 seconds.
"""

from __future__ import annotations

import click
import matplotlib as mpl
import numpy as np
import torch

from acestep import ACEStepPipeline
from acestep.audio import load_audio
from acestep.codec import MusicCodec
from acestep.resample import resample

mpl.use("Agg")
from matplotlib import pyplot

SECONDS = 12


def draw(axes, codec: MusicCodec, waveform: torch.Tensor, title: str, edges: tuple[float, ...] = ()) -> None:
    """The log-mel spectrogram of a waveform `[2, W]`, as the codec sees it, with lines at `edges` in seconds."""
    mel = codec.log_mel(waveform).mean(dim=0).numpy()
    length = waveform.shape[-1] / codec.sample_rate
    axes.imshow(mel, origin="lower", aspect="auto", extent=(0, length, 0, mel.shape[0]), vmin=-9, vmax=2, cmap="magma")
    for edge in edges:
        axes.axvline(edge, color="white", linewidth=0.8)
    peak = np.abs(waveform.numpy()).max()
    axes.set_title(f"{title} ({length:.1f} s, peak {peak:.2f})", fontsize=9, loc="left")
    axes.set_xlim(0, 18)


@click.command()
@click.argument("recording")
@click.argument("picture")
@click.option("--checkpoint", default="tiny", show_default=True)
def main(recording: str, picture: str, checkpoint: str) -> None:
    """Make and draw."""
    pipe = ACEStepPipeline.from_pretrained(checkpoint)
    codec = pipe.engine.networks.codec
    waveform = resample(*load_audio(recording), codec.sample_rate)
    source = (waveform[:, : SECONDS * codec.sample_rate], codec.sample_rate)
    settings = {"source": source, "seed": 1, "num_inference_steps": 27}
    repainted = pipe("drum solo", task="repaint", repaint_start=4, repaint_end=8, **settings)
    extended = pipe("fade out", task="extend", extend_left=2, extend_right=4, **settings)
    edited = pipe("a song", task="edit", target_prompt="string quartet", **settings)
    rows = (
        (source[0], "source", ()),
        (repainted.waveform, "repaint of 4 to 8 s", (4, 8)),
        (extended.waveform, "extend, 2 s before and 4 s behind", (2, 14)),
        (edited.waveform, "edit", ()),
    )
    figure, all_axes = pyplot.subplots(len(rows), figsize=(10, 9), constrained_layout=True)
    for axes, (sound, title, edges) in zip(all_axes, rows, strict=True):
        draw(axes, codec, sound, title, edges)
    all_axes[-1].set_xlabel("seconds")
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main()
