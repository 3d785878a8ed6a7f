"""The OpenAPI document: the library's own request model, with examples that work when pasted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acestep import __version__
from acestep.audio_format import KINDS
from acestep.request import GenerationRequest
from serve.job import STATUSES
from serve.wire import ALIASES

if TYPE_CHECKING:
    from serve.service import Service

FORMATS = tuple(KINDS)

EXAMPLE: dict[str, Any] = {
    "prompt": "lo-fi hip-hop, chill, soft piano, vinyl crackle",
    "lyrics": "[verse]\nRain on the window\n[chorus]\nStay a while",
    "duration": 5,
    "num_inference_steps": 8,
    "seed": 42,
    "response_format": "mp3",
}
_MANY = {
    "defaults": {"duration": 3, "num_inference_steps": 4},
    "items": [{"prompt": "bossa nova"}, {"prompt": "techno"}],
}
_ERRORS = {
    "400": "The body cannot be read.",
    "401": "No key, or one that is not known.",
    "413": "The body or the audio is too large.",
    "422": "A field is not allowed; `error.param` names it, `error.problems` lists all.",
    "429": "The queue is full or the key's limit is reached; see Retry-After.",
    "503": "The model is being loaded.",
    "504": "It took longer than the server lets a caller wait.",
}


def schema(service: Service) -> dict[str, Any]:
    """The document, for the limits of this server."""
    generation = _generation(service.config.jobs.max_n)
    job, error, listing = (
        {"$ref": "#/components/schemas/Job"},
        {"$ref": "#/components/schemas/Error"},
        {"type": "object"},
    )
    failures = {status: _answer(text, error) for status, text in _ERRORS.items()}
    body = {"$ref": "#/components/schemas/Generation"}
    many = {
        "type": "object",
        "required": ["items"],
        "properties": {"defaults": {"type": "object"}, "items": {"type": "array", "items": body}},
    }
    audio = {"description": "The file.", "content": {"audio/*": {"schema": {"type": "string", "format": "binary"}}}}
    id = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    missing = {"404": _answer("There is no such job.", error)}
    content_query = [
        _query("index", {"type": "integer", "minimum": 0, "default": 0}, "Which song."),
        _query("format", {"type": "string", "enum": list(FORMATS)}, "Converted to it; default: as it is stored."),
        _query("download", {"type": "boolean", "default": False}, "To be saved, not played."),
    ]
    list_query = [
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}, "Most jobs of one page."),
        _query("after", {"type": "string"}, "Last id of the page before."),
        _query("order", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}, "By time."),
        _query("status", {"type": "string", "enum": list(STATUSES)}, "Only these."),
    ]
    paths = {
        "/v1/audio/generations": {
            "post": _operation(
                "Make songs and wait for them",
                {"200": _answer("The songs, or with `Accept: audio/*` the file itself.", listing), **failures},
                _body(body, EXAMPLE),
            )
        },
        "/v1/audio/generate": {
            "post": _operation("Make one song, answered as a file", {"200": audio, **failures}, _body(body, EXAMPLE))
        },
        "/v1/audio/jobs": {
            "post": _operation(
                "Ask for songs, or with `items` for many",
                {
                    "202": _answer("It waits.", job),
                    "409": _answer("Idempotency-Key with another body.", error),
                    **failures,
                },
                _body({"oneOf": [body, many]}, EXAMPLE, many=_MANY),
            ),
            "get": _operation("List jobs", {"200": _answer("A page of jobs.", listing)}, parameters=list_query),
        },
        "/v1/audio/jobs/{id}": {
            "get": _operation("One job", {"200": _answer("The job.", job), **missing}, parameters=id),
            "delete": _operation(
                "Cancel a job, or delete one that is over",
                {"200": _answer("The job.", job), **missing},
                parameters=[*id, _query("cancel", {"type": "boolean", "default": False}, "Never delete, only cancel.")],
            ),
        },
        "/v1/audio/jobs/{id}/content": {
            "get": _operation("A song's audio", {"200": audio, **missing}, parameters=id + content_query)
        },
        "/v1/audio/jobs/{id}/events": {
            "get": _operation(
                "The job each time it changes (server-sent events)",
                {"200": {"description": "A stream.", "content": {"text/event-stream": {}}}, **missing},
                parameters=id,
            )
        },
        "/v1/audio/uploads": {
            "post": _operation(
                "Bring audio to begin songs with",
                {"201": _answer("Name it as `source`.", listing), **failures},
                {"content": {"multipart/form-data": {"schema": {"type": "object", "properties": {"file": _FILE}}}}},
            )
        },
        "/v1/models": {"get": _operation("What is served", {"200": _answer("The model.", listing)})},
        "/v1/stats": {"get": _operation("How busy it is", {"200": _answer("Counts and sums.", listing)})},
        "/health": {"get": _operation("Alive", {"200": _answer("It is.", listing)})},
        "/ready": {"get": _operation("Warm", {"200": _answer("It is.", listing), "503": failures["503"]})},
    }
    schemas = {"Generation": generation, "Job": _JOB, "Error": _ERROR}
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "ACE-Step",
            "version": __version__,
            "description": "Music from text. Its output is AI-generated.",
        },
        "paths": paths,
        "components": {"schemas": _as_3_0(schemas), "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


_FILE = {"type": "string", "format": "binary"}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                **{name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")},
                "problems": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}
_JOB = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "audio.job"},
        "status": {"enum": list(STATUSES)},
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        **{name: {"type": ["integer", "null"]} for name in ("step", "steps", "queue_position", "n", "attempts")},
        **{
            name: {"type": ["number", "null"]}
            for name in ("expected_wait_seconds", "created_at", "started_at", "completed_at", "expires_at")
        },
        "parameters": {"type": "object", "description": "The request, resolved, with its seed."},
        "data": {"type": "array", "items": {"type": "object"}, "description": "What is there: url, seed, sha256, ..."},
        "error": {"type": ["object", "null"]},
    },
}


def _generation(max_n: int) -> dict[str, Any]:
    known = GenerationRequest.model_json_schema()
    fields = {name: value for name, value in known["properties"].items() if name != "id"}
    fields["seed"] = {
        "description": "Seed, or a list of n; none: drawn.",
        "anyOf": [{"type": "integer", "minimum": 0}, {"type": "array", "items": {"type": "integer"}}, {"type": "null"}],
    }
    fields["source"] = {
        "type": "string",
        "description": "job:<id>[/<index>], upload:<id>, a data URL, or an allowed URL.",
    }
    fields |= {
        "n": {"type": "integer", "minimum": 1, "maximum": max_n, "default": 1, "description": "How many songs."},
        "model": {"type": "string", "description": "The served one; may be left out."},
        "response_format": {"enum": list(FORMATS), "description": "Kind of file."},
        "delivery": {"enum": ["url", "b64_json"], "default": "url", "description": "How audio comes with the answer."},
    }
    for alias, name in ALIASES.items():
        fields[name]["description"] = f"{fields[name].get('description', '')} Also called {alias}."
    return {"type": "object", "required": ["prompt"], "properties": fields, "additionalProperties": False}


def _as_3_0(schema: Any) -> Any:
    """The same as OpenAPI 3.0 writes it, which the page at /docs reads: null is no type there, but allowed or not."""
    if isinstance(schema, list):
        return [_as_3_0(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _as_3_0(value) for name, value in schema.items() if name != "const"}
    if "const" in schema:
        found["enum"] = [schema["const"]]
    kinds = schema.get("type")
    if isinstance(kinds, list):
        (found["type"],) = (kind for kind in kinds if kind != "null")
        found["nullable"] = True
    if isinstance(schema.get("anyOf"), list) and {"type": "null"} in schema["anyOf"]:
        kept = [each | {"nullable": True} for each in found.pop("anyOf") if each != {"type": "null"}]
        found |= kept[0] if len(kept) == 1 else {"anyOf": kept}
    return found


def _operation(summary: str, responses: Any, body: Any = None, parameters: Any = ()) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if body:
        operation["requestBody"] = body
    if parameters:
        operation["parameters"] = list(parameters)
    return operation


def _body(schema: Any, example: Any, **more: Any) -> dict[str, Any]:
    examples = {name: {"value": value} for name, value in {"song": example, **more}.items()}
    return {"required": True, "content": {"application/json": {"schema": schema, "examples": examples}}}


def _answer(description: str, schema: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _query(name: str, schema: Any, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}
