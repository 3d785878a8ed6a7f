"""Tokens of a request: prompt and lyrics as ids. Work for a CPU, done ahead of the device's; no torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from acestep.request import GenerationRequest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from acestep.checkpoint import Checkpoint
    from acestep.lyrics.tokenizer import LyricTokenizer

MAX_PROMPT_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Tokens:
    """One request's token ids, and what its author should know about them."""

    prompt_ids: tuple[int, ...]
    lyric_ids: tuple[int, ...]
    """Empty for an instrumental song."""
    warnings: tuple[str, ...] = ()


class RequestTokenizer:
    """Turns requests into `Tokens`, with the tokenizers of a checkpoint. Thread-safe."""

    def __init__(self, prompt_tokenizer: Tokenizer, lyric_tokenizer: LyricTokenizer):
        prompt_tokenizer.no_truncation()
        prompt_tokenizer.no_padding()
        self._prompts = prompt_tokenizer
        self._lyrics = lyric_tokenizer

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> RequestTokenizer:
        """Load the tokenizers that a checkpoint names."""
        from tokenizers import Tokenizer

        from acestep.lyrics.tokenizer import LyricTokenizer

        prompts = Tokenizer.from_file(str(checkpoint.folder("text_encoder") / "tokenizer.json"))
        return cls(prompts, LyricTokenizer(checkpoint.lyric_vocab))

    def __call__(self, request: GenerationRequest) -> Tokens:
        """Token ids of a request; prompts are cut to 256 tokens, with a warning that names the words lost.

        Raises:
            InvalidRequestError: for lyrics beyond what the model was trained on.
        """
        encoding = self._prompts.encode(request.prompt)
        ids, warnings = list(encoding.ids), []
        if len(ids) > MAX_PROMPT_TOKENS:
            lost = request.prompt[encoding.offsets[MAX_PROMPT_TOKENS - 2][1] :].strip()
            warnings.append(f"prompt: {len(ids)} tokens, the model reads {MAX_PROMPT_TOKENS}; not read: {lost!r}")
            ids = ids[: MAX_PROMPT_TOKENS - 1] + ids[-1:]  # the end token stays, as when transformers truncates
        lyrics = self._lyrics.encode(request.lyrics, request.language, normalize_tags=request.normalize_tags)
        return Tokens(tuple(ids), () if lyrics.is_instrumental else lyrics.ids, (*warnings, *lyrics.warnings))
