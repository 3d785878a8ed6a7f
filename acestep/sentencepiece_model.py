"""A SentencePiece model, as bytes, read as a `tokenizers` file: some checkpoints carry their tokenizer that way.

Unigram models only, as UMT5 has one. Needs neither sentencepiece nor protobuf.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

UNIGRAM = 1
"""The kind of model, by the number in the format."""
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
"""Kinds of pieces that text does not become by its letters; the others are normal, unused and bytes."""
_SPACE = "\u2581"

Value = int | bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its id is its place."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What of a model's file decides how it cuts text."""

    pieces: tuple[Piece, ...]
    kind: int
    unknown_id: int
    end_id: int
    byte_fallback: bool
    character_map: bytes
    """Compiled normalisation, as `tokenizers` takes it."""
    add_prefix: bool
    strip_spaces: bool

    @classmethod
    def parse(cls, data: bytes) -> SentencePieceModel:
        """Read a model from the bytes of its file.

        Raises:
            ValueError: if they are not such a file.
        """
        pieces: list[Piece] = []
        trainer: dict[int, Value] = {}
        normalizer: dict[int, Value] = {}
        for field, value in _fields(data):
            if field == 1:
                entry = dict(_fields(_bytes(value)))
                score = struct.unpack("<f", _bytes(entry.get(2, bytes(4))))[0]
                pieces.append(Piece(_bytes(entry.get(1, b"")).decode(), score, _int(entry.get(3, 1))))
            elif field == 2:
                trainer = dict(_fields(_bytes(value)))
            elif field == 3:
                normalizer = dict(_fields(_bytes(value)))
        model = cls(
            pieces=tuple(pieces),
            kind=_int(trainer.get(3, UNIGRAM)),
            unknown_id=_int(trainer.get(40, 0)),
            end_id=_int(trainer.get(42, 2)),
            byte_fallback=bool(_int(trainer.get(35, 0))),
            character_map=_bytes(normalizer.get(2, b"")),
            add_prefix=bool(_int(normalizer.get(3, 1))),
            strip_spaces=bool(_int(normalizer.get(4, 1))),
        )
        if not max(model.unknown_id, model.end_id) < len(pieces):
            raise ValueError(
                f"it has {len(pieces)} pieces, ids {model.unknown_id} and {model.end_id} are not among them"
            )
        return model

    def tokenizers_file(self) -> dict[str, Any]:
        """The content of the `tokenizer.json` that gives the same ids, with the end token behind every text.

        Raises:
            ValueError: for a model that is not a Unigram one.
        """
        if self.kind != UNIGRAM:
            raise ValueError(f"it is a model of kind {self.kind}; only Unigram ({UNIGRAM}) is known")
        end = self.pieces[self.end_id].text
        metaspace = {
            "type": "Metaspace",
            "replacement": _SPACE,
            "prepend_scheme": "always" if self.add_prefix else "never",
            "split": True,
        }
        words = [{"type": "WhitespaceSplit"}] if self.strip_spaces else []
        closing = {"SpecialToken": {"id": end, "type_id": 0}}
        pair = [
            closing if name is None else {"Sequence": {"id": name, "type_id": 0}} for name in ("A", None, "B", None)
        ]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added(index, piece) for index, piece in enumerate(self.pieces) if _is_added(piece)],
            "normalizer": self._normalizer(),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*words, metaspace]},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": pair[:2],
                "pair": pair,
                "special_tokens": {end: {"id": end, "ids": [self.end_id], "tokens": [end]}},
            },
            "decoder": metaspace,
            "model": {
                "type": "Unigram",
                "unk_id": self.unknown_id,
                "vocab": [[piece.text, piece.score] for piece in self.pieces],
                "byte_fallback": self.byte_fallback,
            },
        }

    def _normalizer(self) -> dict[str, Any] | None:
        if not self.character_map:
            return None
        return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(self.character_map).decode()}


def _is_added(piece: Piece) -> bool:
    return piece.kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)


def _added(index: int, piece: Piece) -> dict[str, Any]:
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": piece.text, **token, "special": piece.kind != _USER_DEFINED}


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a protocol-buffers message: number and value, nested messages and floats as their bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}.get(kind, -1), at)
        if size < 0 or at + size > len(data):
            raise ValueError(f"byte {at:,} of {len(data):,} cannot be read as a field")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError(f"it breaks off at byte {at:,}")


def _bytes(value: Value) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where text is expected")
    return value


def _int(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError("text stands where a number is expected")
    return value if value < 2**63 else value - 2**64
