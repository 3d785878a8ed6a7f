"""Golden case of a LoRA adapter: the transformer's velocity without it, and with it at two weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file

from acestep.lora import Adapter
from acestep.lora_files import ORIGINAL_NAME
from acestep.lora_stack import AdapterStack
from tests.golden import Comparison, Golden, case
from tests.golden_cases.networks import tiny_transformer

FILE_PREFIX = "lora_file."


@case("lora")
def lora(golden: Golden) -> Iterator[Comparison]:
    entries = {
        name.removeprefix(FILE_PREFIX): tensor
        for name, tensor in golden.tensors.items()
        if name.startswith(FILE_PREFIX)
    }
    with tempfile.TemporaryDirectory() as folder:
        save_file(entries, Path(folder) / ORIGINAL_NAME)
        adapter = Adapter.load(folder, name="golden")
    model = tiny_transformer()
    stack = AdapterStack(model)
    stack.add(adapter)
    hidden, mask = golden["encoder_hidden_states"], golden["encoder_mask"].bool()
    try:
        for weight, name in ((1.0, "output_weight_1.0"), (0.5, "output_weight_0.5"), (0.0, "output_base")):
            stack.activate({"golden": weight})
            # The condition comes after the switch: the adapter changes its keys and values as well.
            yield name, model(golden["latents"], golden["timestep"], model.condition(hidden, mask)), golden[name]
    finally:
        stack.unload("golden")  # The network is shared with the other cases.
