"""A transformer of two blocks, a prompt encoder and batches, small enough to train within a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from acestep.conditioning import pack
from acestep.models.prompt_encoder import PromptEncoder
from acestep.models.transformer import ACEStepTransformer, TransformerConfig
from acestep.training.flow_matching import LatentBatch

TEXT_WIDTH, SPEAKER_WIDTH, VOCABULARY = 16, 12, 20
CONFIG: dict[str, Any] = {
    "inner_dim": 32,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "num_layers": 2,
    "text_embedding_dim": TEXT_WIDTH,
    "speaker_embedding_dim": SPEAKER_WIDTH,
    "lyric_encoder_vocab_size": VOCABULARY,
    "lyric_hidden_size": 16,
    "lyric_encoder_num_layers": 1,
    "lyric_encoder_num_heads": 2,
    "lyric_encoder_ff_size": 24,
    "patch_embed_size": 64,
}


def make_transformer(**changes: Any) -> ACEStepTransformer:
    """The same weights each time, trainable."""
    torch.manual_seed(0)
    transformer = ACEStepTransformer(TransformerConfig(**CONFIG | changes))
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name.endswith("scale_shift_table"):  # At 0 the gates would be small, and much of a block unheard.
                parameter.normal_(std=0.5)
    return transformer.eval()


def make_prompt_encoder(layers: int = 1) -> PromptEncoder:
    """Frozen, as a loaded one is."""
    torch.manual_seed(1)
    sizes = {"d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": layers, "num_heads": 2}
    encoder = PromptEncoder.from_config({"vocab_size": VOCABULARY, "feed_forward_proj": "gated-gelu", **sizes})
    return encoder.eval().requires_grad_(False)


def make_batch(
    lengths: Sequence[int] = (9, 12),
    prompts: Sequence[int] = (3, 5),
    lyrics: Sequence[int] = (4, 2),
    *,
    speaker: bool = False,
    seed: int = 5,
) -> LatentBatch:
    """Songs of so many frames, prompt tokens and lyric tokens; lyrics of none are instrumental."""
    generator = torch.Generator().manual_seed(seed)

    def ids(counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        width = max(1, *counts)
        mask = (torch.arange(width) < torch.tensor(counts)[:, None]).long()
        return torch.randint(1, VOCABULARY, (len(counts), width), generator=generator) * mask, mask

    frame_mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    latents = torch.randn(len(lengths), 8, 16, max(lengths), generator=generator) * frame_mask[:, None, None]
    prompt_ids, prompt_mask = ids(prompts)
    lyric_ids, lyric_mask = ids(lyrics)
    return LatentBatch(
        latents=latents,
        frame_mask=frame_mask,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        lyric_ids=lyric_ids,
        lyric_mask=lyric_mask,
        speaker=torch.randn(len(lengths), SPEAKER_WIDTH, generator=generator) if speaker else None,
    )


@torch.no_grad()
def velocity_of(transformer: ACEStepTransformer, batch: LatentBatch, point: float = 500.0) -> Tensor:
    """At the batch's latents, its prompts encoded by `make_prompt_encoder`."""
    text = make_prompt_encoder()(batch.prompt_ids, batch.prompt_mask)
    hidden = transformer.encode(text, batch.prompt_mask, batch.lyric_ids, batch.lyric_mask, batch.speaker)
    return transformer(batch.latents, torch.tensor([point]), transformer.condition(*pack(*hidden)), batch.frame_mask)
