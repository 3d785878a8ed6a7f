"""The prompts that a model is judged by. They are kept out of every training.

python -m acestep.evaluation.prompts     # writes held_out.jsonl beside this file: the same bytes each time
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from acestep.synth import Piece, describe, random_piece
from acestep.synth.piece import INSTRUMENTS, TEMPI

HELD_OUT = Path(__file__).with_name("held_out.jsonl")
NUM_PROMPTS = 100
RESERVED_SEEDS = range(2_000_000_000, 2_000_100_000)
"""Of pieces and captions that no training uses."""

_VALUES = {"instrument": len(INSTRUMENTS), "tempo": len(TEMPI), "key": 24}
"""How many there are of what is to be covered evenly."""
_KEY = re.compile(r"\b[A-G](#|b| sharp| flat)? (major|minor)\b")
_TEMPO = re.compile(r"\d\s?bpm", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A prompt, what it tells of, and the seed to make it with."""

    prompt: str
    piece: Piece
    generation_seed: int

    @property
    def id(self) -> str:
        """A short name."""
        return f"{self.generation_seed:03d}"


@cache
def held_out() -> tuple[HeldOut, ...]:
    """All of them, in an order whose every beginning is a fair sample."""
    found = []
    for line in HELD_OUT.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        prompt, seed = values.pop("prompt"), values.pop("generation_seed")
        found.append(HeldOut(prompt, Piece(**values), seed))
    return tuple(found)


def is_held_out(prompt: str) -> bool:
    """Whether a prompt says what a held-out one does: in any case of letters, its tags in any order."""
    return _normal(prompt) in _normal_prompts()


def is_held_out_combination(piece: Piece) -> bool:
    """Whether a held-out prompt tells of this instrument in this key at this tempo.

    A training that leaves such pieces out (4% of all) shows that the model puts together what it learned apart.
    """
    return (piece.instrument, piece.key, piece.tempo) in _combinations()


def build() -> str:
    """The text of `held_out.jsonl`."""
    counts: dict[str, Counter] = {name: Counter() for name in _VALUES}
    lines: list[str] = []
    prompts, combinations = set(), set()
    for seed in RESERVED_SEEDS:
        piece = random_piece(seed)
        prompt = describe(piece, seed)
        combination = (piece.instrument, piece.key, piece.tempo)
        if not _says_enough(prompt, piece) or _normal(prompt) in prompts or combination in combinations:
            continue
        # None may get ahead of the others, so that the first prompts are as even as all of them.
        if any(counts[name][getattr(piece, name)] > len(lines) // values for name, values in _VALUES.items()):
            continue
        for name in _VALUES:
            counts[name][getattr(piece, name)] += 1
        prompts.add(_normal(prompt))
        combinations.add(combination)
        lines.append(json.dumps({"prompt": prompt, **asdict(piece), "generation_seed": len(lines)}))
        if len(lines) == NUM_PROMPTS:
            return "\n".join(lines) + "\n"
    raise AssertionError("the reserved seeds are too few")


def _says_enough(prompt: str, piece: Piece) -> bool:
    return piece.instrument in prompt and bool(_KEY.search(prompt)) and bool(_TEMPO.search(prompt))


def _normal(prompt: str) -> frozenset[str]:
    """What a prompt says, however it is written."""
    text = re.sub(r"(\d)\s*bpm\b", r"\1 bpm", prompt.lower())
    return frozenset(" ".join(tag.split()) for tag in text.split(",") if tag.strip())


@cache
def _normal_prompts() -> frozenset[frozenset[str]]:
    return frozenset(_normal(item.prompt) for item in held_out())


@cache
def _combinations() -> frozenset[tuple[str, str, int]]:
    return frozenset((item.piece.instrument, item.piece.key, item.piece.tempo) for item in held_out())


if __name__ == "__main__":
    HELD_OUT.write_text(build(), encoding="utf-8")
