"""What a rehearsal begins with: the manifest with its troublesome rows, config, adapter, and a source to damage."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import yaml

PROMPTS = "examples/real_prompts.parquet"


def config_text(steps: int) -> str:
    """Of the job: swept, with latents, and with batches for a CPU."""
    settings = {
        # Only rows that leave these open are swept; the others say both.
        "sweep": {"guidance_scale": [5.0, 15.0], "num_inference_steps": [max(1, steps // 2), steps]},
        "keep_latents": True,
        "batch": {"frame_budget": 2600},
        "resources": {"num_actors": 2},
    }
    return yaml.safe_dump(settings, sort_keys=False)


def manifest_rows(steps: int, *, adapter: str, source: str, latents: str) -> tuple[list[dict[str, Any]], int]:
    """The rows, and how many songs they are: one is poisoned, the two swept ones are four songs each.

    Args:
        adapter: folder of a LoRA adapter.
        source: audio that is damaged at first.
        latents: of a song of 12 s, to repaint.
    """
    fixed = {"num_inference_steps": steps, "guidance_scale": 15.0}
    rows = [row | {"num_inference_steps": steps} for row in pq.read_table(PROMPTS).to_pylist()]
    repaint = {"task": "repaint", "source": latents, "repaint_start": 4.0, "repaint_end": 8.0}
    trouble = [
        {"id": "poisoned", "prompt": "polka", "duration": 900.0, "scheduler": "huen", **fixed},
        {"id": "damaged-source", "prompt": "jazz trio", "task": "audio2audio", "source": source, **fixed},
        {"id": "with-adapter", "prompt": "techno", "duration": 20.0, "lora": adapter, **fixed},
        {"id": "repainted", "prompt": "bossa nova, flute", "duration": 12.0, **repaint, **fixed},
        {"id": "swept", "prompt": "ambient, pads", "duration": 15.0},
        {"id": "swept-twice", "prompt": "punk rock", "duration": 15.0, "guidance_scale": 15.0, "num_songs": 2},
    ]
    return [*rows[:7], *trouble, *rows[7:]], len(rows) + 3 + 4 + 4


def mended(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with the poisoned one as it was meant."""
    return [row | {"duration": 90.0, "scheduler": "heun"} if row["id"] == "poisoned" else row for row in rows]


def write_manifest(path: str, rows: list[dict[str, Any]]) -> None:
    """Parquet with the columns of all rows."""
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), path)


def write_adapter(folder: Path) -> None:
    """A LoRA adapter of rank 4 on the tiny transformer's attention, in the original's format."""
    import torch
    from safetensors.torch import save_file

    from acestep.checkpoint import FOLDERS
    from acestep.lora_files import ORIGINAL_NAME
    from acestep.tiny import tiny_checkpoint
    from acestep.weight_files import read_header

    generator = torch.Generator().manual_seed(0)
    entries = {}
    (weights,) = (tiny_checkpoint() / FOLDERS["transformer"]).glob("*.safetensors")
    for name, entry in read_header(weights).items():
        module = name.removesuffix(".weight")
        if module.startswith("transformer_blocks") and module.endswith(("to_q", "to_v")):
            out, inner = entry["shape"]
            entries[f"{module}.lora_A.weight"] = torch.randn(4, inner, generator=generator) / inner**0.5
            entries[f"{module}.lora_B.weight"] = torch.randn(out, 4, generator=generator) / 2
    folder.mkdir()
    save_file(entries, folder / ORIGINAL_NAME)


def tape() -> bytes:
    """Twenty seconds of a chord in noise, as FLAC."""
    times = np.arange(20 * 44100) / 44100
    chord = np.sum([0.1 * np.sin(2 * np.pi * pitch * times) for pitch in (220, 277.2, 329.6)], axis=0)
    noise = np.random.default_rng(0).normal(0, 0.02, (len(times), 2))
    file = io.BytesIO()
    soundfile.write(file, chord[:, None] + noise, 44100, format="FLAC")
    return file.getvalue()
