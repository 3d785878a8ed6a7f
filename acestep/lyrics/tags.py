"""Structure tags: lines such as `[verse]` that say what part of the song follows."""

from __future__ import annotations

import re

TAGS = (
    *("[start]", "[intro]", "[verse]", "[chorus]", "[bridge]", "[outro]"),
    *("[end]", "[inst]", "[solo]", "[hook]", "[pre-chorus]", "[break]"),
)
"""The tags that the lyric vocabulary has a token for; any other is read aloud, brackets and all."""

_TAG = re.compile(r"\[.*?\]")
_ROUND_TAG = re.compile(r"\(([A-Za-z -]+?)(?: *x? *[0-9]+x?)?\):?")
_WORDS = {  # The first of these that a tag contains says which known tag it means.
    **{"pre-chorus": "[pre-chorus]", "prechorus": "[pre-chorus]", "pre chorus": "[pre-chorus]"},
    **{"chorus": "[chorus]", "refrain": "[chorus]", "verse": "[verse]", "bridge": "[bridge]", "hook": "[hook]"},
    **{"intro": "[intro]", "outro": "[outro]", "solo": "[solo]", "break": "[break]", "inst": "[inst]"},
    **{"interlude": "[inst]", "start": "[start]", "end": "[end]"},
}
_WORD = re.compile(r"\b(" + "|".join(_WORDS) + r")(?:rumental|down|ing)?(?![a-z])")


def tag_of(line: str) -> str | None:
    """The structure tag that `line` opens with, brackets included."""
    match = _TAG.match(line)
    return match[0] if match else None


def is_known(tag: str) -> bool:
    """Whether the model was taught `tag`."""
    return tag.lower() in TAGS


def normalized_lines(line: str) -> list[str]:
    """A line with its tag as the model knows it and on a line of its own, so that text behind it is sung as text.

    `[Verse 2] Hello` becomes `[verse]` and `Hello`, `(Bridge)` alone becomes `[bridge]`; other lines stay.
    """
    if (round_tag := _ROUND_TAG.fullmatch(line)) and _WORD.fullmatch(round_tag[1].lower()):
        line = f"[{round_tag[1].lower()}]"
    line = normalize_tag(line)
    tag = tag_of(line)
    if tag is None or not is_known(tag):
        return [line]
    return [part for part in (tag, line[len(tag) :].strip()) if part]


def normalize_tag(line: str) -> str:
    """`line` with its tag put as the model knows it, where that is clear: `[Verse 2]` becomes `[verse]`."""
    tag = tag_of(line)
    if tag is None or is_known(tag):
        return line
    word = _WORD.search(tag.lower())
    return _WORDS[word[1]] + line[len(tag) :] if word else line
