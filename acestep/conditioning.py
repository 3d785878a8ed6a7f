"""From tokens to what the transformer attends to.

Each item keeps its own condition positions: the sequence [speaker | text | lyrics] is packed without the padding
that a batch puts between text and lyrics, since rope would otherwise shift the lyrics by their neighbours' prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from acestep.models.transformer import ACEStepTransformer, Condition
from acestep.request import GenerationRequest
from acestep.sampling.denoise import ERG_SCALE, branch_scale
from acestep.tokens import Tokens

if TYPE_CHECKING:
    from acestep.models.prompt_encoder import PromptEncoder


def encode_condition(
    prompt_encoder: PromptEncoder,
    transformer: ACEStepTransformer,
    requests: Sequence[GenerationRequest],
    tokens: Sequence[Tokens],
) -> Condition:
    """The condition of requests that share a `batch_key`: their rows, then those of their unconditional twins."""
    device = transformer.lyric_embs.weight.device
    prompt_ids, prompt_mask = _padded([item.prompt_ids for item in tokens], device)
    # Without lyrics the original hands in one id 0 that is masked; packing drops it again.
    lyric_ids, lyric_mask = _padded([item.lyric_ids for item in tokens], device)
    count, first = len(requests), requests[0]
    weakened = None
    is_edit = first.task == "edit"
    if is_edit:  # guided against a branch without text or lyrics, nothing weakened
        requests = [first.model_copy(update={"use_erg_lyric": False, "guidance_scale_text": 0.0})]
        text = prompt_encoder(prompt_ids, prompt_mask)
    elif first.is_guided and first.use_erg_tag and first.use_erg_lyric:
        scale = branch_scale(count, (1.0, ERG_SCALE), device)
        text, weakened = prompt_encoder(prompt_ids.repeat(2, 1), prompt_mask.repeat(2, 1), scale).split(count)
    else:
        text = prompt_encoder(prompt_ids, prompt_mask)
    return condition_rows(
        transformer,
        requests,
        text,
        prompt_mask,
        lyric_ids,
        lyric_mask,
        weakened_text=weakened,
        twins_have_lyrics=not is_edit,
    )


def condition_rows(
    transformer: ACEStepTransformer,
    requests: Sequence[GenerationRequest],
    text: torch.Tensor,
    text_mask: torch.Tensor,
    lyric_ids: torch.Tensor,
    lyric_mask: torch.Tensor,
    *,
    weakened_text: torch.Tensor | None = None,
    twins_have_lyrics: bool = True,
) -> Condition:
    """The condition from encoded prompts `[B, S, E]` and lyric ids `[B, L]`, with twins if the requests are guided.

    With `use_erg_lyric` a twin has the weakened text (zeros if there is none) and weakened lyrics; without it neither
    text nor lyrics but zeros in their places (the original then drops the weakened text, too). Without
    `twins_have_lyrics` those places are masked, as flow-edit wants it. Doubly guided requests have second twins, with
    the text as it is and the lyrics as the first twins have them.
    """
    count, first = len(requests), requests[0]
    text = text.to(transformer.genre_embedder.weight.dtype)
    if not first.is_guided:
        return transformer.condition(*pack(*transformer.encode(text, text_mask, lyric_ids, lyric_mask)))
    twin_text, twin_ids = torch.zeros_like(text), torch.zeros_like(lyric_ids)
    if first.use_erg_lyric:
        twin_ids = lyric_ids
        twin_text = twin_text if weakened_text is None else weakened_text.to(text.dtype)
    second = [text] if first.is_double else []
    twins = 1 + len(second)
    scale = branch_scale(count, (1.0, *[ERG_SCALE] * twins), text.device)
    hidden, mask = transformer.encode(
        torch.cat([text, twin_text, *second]),
        text_mask.repeat(1 + twins, 1),
        torch.cat([lyric_ids, *[twin_ids] * twins]),
        torch.cat([lyric_mask, *[lyric_mask * twins_have_lyrics] * twins]),
        lyric_query_scale=scale if first.use_erg_lyric else None,
    )
    return transformer.condition(*pack(hidden, mask))


def pack(hidden: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move each row's real tokens to the front and cut what no row needs: `[B, N, E]`, `[B, N]` -> N no longer."""
    length = int(mask.sum(dim=1).max())
    order = torch.argsort((~mask).to(torch.int8), dim=1, stable=True)[:, :length]
    packed = hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))
    return packed, mask.gather(1, order)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as `[B, N]` with N at least 1, padded with 0, and their mask."""
    length = max(1, *(len(row) for row in rows)) if rows else 1
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return ids.to(device), mask.to(device)
