"""Lyrics as the model reads them: language, spelling and token ids.

    from acestep.lyrics import LyricTokenizer
    LyricTokenizer("vocab.json").encode("[verse]\\nHello, 42 of you", language="en").ids

An English-only installation needs none of the optional packages but for numbers; `pip install "acestep-ray[lyrics]"`
brings every language.
"""

from __future__ import annotations

from acestep.lyrics.packages import MissingPackageError
from acestep.lyrics.tokenizer import MAX_IDS, EncodedLyrics, LyricTokenizer

__all__ = ["MAX_IDS", "EncodedLyrics", "LyricTokenizer", "MissingPackageError"]
