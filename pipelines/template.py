"""`Template`: the settings that many songs share: validated once, written down once, hashed with little work a song."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import pyarrow as pa

from acestep.request import SOUND_VERSION, GenerationRequest
from pipelines import schema

OWN = ("id", "prompt", "lyrics", "duration", "seed")
"""Fields of a request that each song has of its own."""
_HASHED = sorted(set(OWN) - {"id"})

to_json = json.JSONEncoder().encode
"""As `json.dumps` writes it, and quicker."""


class Template:
    """A resolved request without what each song has of its own.

    Args:
        request: resolved; the fields of `OWN` are left aside.
        model, rendition, adapter: as `GenerationRequest.fingerprint` takes them.
    """

    def __init__(self, request: GenerationRequest, model: str, rendition: str, adapter: str):
        self.request = request
        self.adapter = adapter
        values = schema.request_values(request)
        self.values = {name: value for name, value in values.items() if name not in OWN}
        # As `GenerationRequest.fingerprint` writes it: one sorted JSON object, cut where a song's own values stand.
        what = {"sound": SOUND_VERSION, "model": model, "rendition": rendition, "adapter": adapter}
        what |= request.settings()
        written = (
            f'"{name}": ' + ("%s" if name in _HASHED else _escaped(json.dumps(what[name]))) for name in sorted(what)
        )
        self._text = "{" + ", ".join(written) + "}"

    def fingerprint(self, duration: str, lyrics: str, prompt: str, seed: str) -> str:
        """The fingerprint of the song with these values, each given as JSON."""
        return hashlib.sha256((self._text % (duration, lyrics, prompt, seed)).encode()).hexdigest()[:16]


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def columns_of(templates: Sequence[Template], of_song: Sequence[int]) -> pa.Table:
    """The shared settings as columns of `schema.REQUEST`; `of_song` names the template of each song."""
    fields = [field for field in schema.REQUEST if field.name not in OWN]
    columns = [pa.array([template.values[field.name] for template in templates], field.type) for field in fields]
    return pa.table(columns, schema=pa.schema(fields)).take(pa.array(of_song, pa.int64()))
