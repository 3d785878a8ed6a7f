"""Golden cases of the transformer, its parts, and the prompt encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from transformers import UMT5Config, UMT5EncoderModel

from acestep.models.prompt_encoder import PromptEncoder
from acestep.models.repa import RepaHeads, repa_loss
from acestep.models.rope import rope_table
from acestep.models.transformer import ACEStepTransformer
from acestep.models.transformer_block import TransformerBlock
from tests.golden import Comparison, Golden, case
from tests.recipe import fill_by_recipe, published_config, recipe_tensor

TINY_CONFIG = Path(__file__).parents[1] / "golden_data" / "tiny_transformer_config.json"


@lru_cache(maxsize=1)
def tiny_transformer() -> ACEStepTransformer:
    """The narrow, 24-block transformer that most cases were made with."""
    model = ACEStepTransformer.from_config(json.loads(TINY_CONFIG.read_text())["TINY"])
    fill_by_recipe(model)
    return model.eval()


@case("transformer")
def transformer(golden: Golden) -> Iterator[Comparison]:
    model = tiny_transformer()
    names = ("text", "text_mask", "lyric_ids", "lyric_mask", "speaker")
    hidden, mask = model.encode(*(golden[name] for name in names))
    yield "encoder_hidden_states", hidden, golden["encoder_hidden_states"]
    yield "encoder_mask", mask, golden["encoder_mask"]
    velocity = model(golden["latents"], golden["timestep"], model.condition(hidden, mask), golden["attention_mask"])
    yield "output", velocity, golden["output"]


@case("lyric_encoder")
def lyric_encoder(golden: Golden) -> Iterator[Comparison]:
    model = tiny_transformer()
    yield (
        "output",
        model.lyric_encoder(model.lyric_embs(golden["lyric_ids"]), golden["lyric_mask"]),
        golden["output"],
    )


@case("transformer_block_full")
def transformer_block_full(golden: Golden) -> Iterator[Comparison]:
    config = published_config("ace_step_transformer")
    width, heads = config["inner_dim"], config["num_attention_heads"]
    block = TransformerBlock(width, heads, int(config["mlp_ratio"] * width))
    fill_by_recipe(block, "transformer_blocks.0.")
    hidden, condition = golden["hidden_states"], golden["encoder_hidden_states"]
    ropes = [rope_table(x.shape[1], width // heads, config["rope_theta"]) for x in (hidden, condition)]
    keys_and_values = block.cross_attn.keys_and_values(condition, ropes[1])
    modulation = golden["temb"].unflatten(-1, (6, -1))
    yield (
        "output",
        block(hidden, modulation, keys_and_values, golden["encoder_mask"].bool(), ropes[0]),
        golden["output"],
    )


@case("text_encoder")
def text_encoder(golden: Golden) -> Iterator[Comparison]:
    encoder = PromptEncoder(UMT5EncoderModel(UMT5Config(**golden.case["umt5"])).eval())
    fill_by_recipe(encoder.model)
    with torch.no_grad():  # The tied embedding holds the recipe of the encoder's name for it.
        shared = encoder.model.shared.weight
        shared.copy_(recipe_tensor("encoder.embed_tokens.weight", tuple(shared.shape)))
    ids, mask = golden["input_ids"], golden["attention_mask"]
    yield "output", encoder(ids, mask), golden["output"]
    yield "output_weakened", encoder(ids, mask, torch.full((len(ids),), 0.01)), golden["output_weakened"]


@case("repa")
def repa(golden: Golden) -> Iterator[Comparison]:
    model = tiny_transformer()
    heads = RepaHeads.from_config(json.loads(TINY_CONFIG.read_text())["TINY"])
    fill_by_recipe(heads)
    condition = model.condition(golden["encoder_hidden_states"], golden["encoder_mask"].bool())
    with heads.listening(model) as heard:
        model(golden["latents"], golden["timestep"], condition)
    for projection, target in zip(heard, ("mert", "mhubert"), strict=True):
        yield target, repa_loss(projection, golden[target]).reshape(1), golden[f"loss_{target}"]
