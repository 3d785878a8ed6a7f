"""The texts of the built-in checkpoint: its prompt tokenizer and its lyric vocabulary, as `tokenizers` files.

The prompt tokenizer is one of bytes, so that any text can be encoded. The lyric vocabulary is one of letters, with the
special tokens of the published one under the same names (their ids differ).
"""

from __future__ import annotations

from typing import Any

PAD, END, UNKNOWN = 0, 1, 2
"""Ids of the prompt tokenizer, as UMT5 has them."""

_TABLE_STEP = 16

LANGUAGE_TOKENS = (
    *("[en]", "[de]", "[fr]", "[es]", "[it]", "[pt]", "[pl]", "[tr]", "[ru]"),
    *("[cs]", "[nl]", "[ar]", "[zh-cn]", "[ja]", "[hu]", "[ko]", "[hi]"),
)
STRUCTURE_TOKENS = (
    *("[start]", "[intro]", "[verse]", "[chorus]", "[bridge]", "[outro]"),
    *("[end]", "[inst]", "[solo]", "[hook]", "[pre-chorus]", "[break]"),
)

_RANGES = (
    (0x21, 0x7E),  # ASCII
    (0xA1, 0xBF),  # Latin punctuation
    (0xDF, 0xFF),  # Latin small letters
    (0x430, 0x451),  # Cyrillic small letters
    (0x621, 0x63A),  # Arabic letters
    (0x640, 0x652),  # Arabic letters and vowel signs
    (0x901, 0x94D),  # Devanagari
    (0x958, 0x970),  # Devanagari
)


def lyric_vocab() -> dict[str, Any]:
    """The lyric vocabulary's file."""
    alphabet = [chr(code) for low, high in _RANGES for code in range(low, high + 1)]
    alphabet += [chr(code) for code in range(0x101, 0x180) if chr(code).islower()]
    names = ["[STOP]", "[UNK]", "[SPACE]", *alphabet, "[START]", *LANGUAGE_TOKENS]
    vocab = {name: index for index, name in enumerate(names)}
    special = ["[STOP]", "[UNK]", "[SPACE]", "[START]", *LANGUAGE_TOKENS]
    added = [_added(name, vocab[name]) for name in special]
    added += [_added(name, len(names) + index) for index, name in enumerate(STRUCTURE_TOKENS)]
    model = _byte_pairs(vocab) | {"unk_token": "[UNK]"}
    return _file(added, model) | {"pre_tokenizer": {"type": "Whitespace"}}


def prompt_tokenizer() -> dict[str, Any]:
    """The prompt tokenizer's file: bytes, closed by `</s>`."""
    names = ["<pad>", "</s>", "<unk>", *sorted(_byte_letters())]
    added = [_added(name, index) for index, name in enumerate(names[:3])]
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    closing = {"</s>": {"id": "</s>", "ids": [END], "tokens": ["</s>"]}}
    bytes_of = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return _file(added, _byte_pairs({name: index for index, name in enumerate(names)})) | {
        "pre_tokenizer": bytes_of,
        "decoder": bytes_of,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": closing,
        },
    }


def _byte_letters() -> list[str]:
    """The letters that stand for the 256 bytes, as GPT-2 has it: themselves if they can be seen, else from 256 on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return [chr(byte) for byte in sorted(visible)] + [chr(0x100 + index) for index in range(256 - len(visible))]


def _byte_pairs(vocab: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "vocab": vocab,
        "merges": [],
    }


def _file(added: list[dict[str, Any]], model: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


def _added(name: str, index: int) -> dict[str, Any]:
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": name, **token}


def _table_size(file: dict[str, Any]) -> int:
    """Rows of an embedding table with room for all ids."""
    largest = max([*file["model"]["vocab"].values(), *(token["id"] for token in file["added_tokens"])])
    return (largest // _TABLE_STEP + 1) * _TABLE_STEP


LYRIC_TABLE_SIZE = _table_size(lyric_vocab())
PROMPT_TABLE_SIZE = _table_size(prompt_tokenizer())
