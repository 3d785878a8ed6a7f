"""Signed content credentials (C2PA) in wav, flac and mp3: who made a song with what, and that nobody changed it since.

Needs the extra `provenance`; nothing here touches a network.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from acestep import __version__
from acestep.audio_format import AudioFormat
from acestep.errors import ACEStepError, AudioFormatError

SIGNABLE_FORMATS = ("wav", "flac", "mp3")
"""What can carry credentials; Ogg files, Vorbis and Opus alike, cannot."""
INSTALL_HINT = 'pip install "acestep-ray[provenance]"'

_GENERATOR = "acestep-ray"
_FACTS = "org.acestep-ray.generation"
_ACTIONS = "c2pa.actions"
_AI_GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_OFFLINE = {"remote_manifest_fetch": False, "ocsp_fetch": False}

Pem = str | os.PathLike[str] | bytes
"""A PEM file's path, or its content."""


class ProvenanceError(ACEStepError):
    """A file that cannot be signed, or credentials that are missing or do not hold."""

    error_class = "input"


def sign(
    data: bytes,
    format: str,
    *,
    facts: Mapping[str, Any],
    certificate: Pem | None,
    private_key: Pem | None,
    algorithm: str = "es256",
) -> bytes:
    """An audio file with signed credentials in it, read back before it is returned; the samples stay as they are.

    The credentials say "made by a trained model" in the words of the standard, and hold `facts`. They are not
    deterministic: a random name and the signature itself differ each time, so the same song signed twice is two files
    with two sha256.

    Args:
        data: a whole file, as `acestep.audio.encode_audio` makes them.
        format: one of `SIGNABLE_FORMATS`.
        facts: what JSON can say of the song: model, fingerprints, seed, versions.
        certificate: the chain, the signer's own certificate first.
        private_key: of the first certificate, PKCS #8 without a passphrase.
        algorithm: of the key: es256, es384, es512, ps256, ps384, ps512 or ed25519.

    Raises:
        AudioFormatError: for a format that cannot carry credentials.
        ProvenanceError: for a certificate and key that cannot sign, or without the extra.
    """
    media_type = _media_type(format)
    chain, key = _pem(certificate, "certificate"), _pem(private_key, "private key")
    c2pa = _c2pa()
    out = io.BytesIO()
    try:
        info = c2pa.C2paSignerInfo(alg=algorithm, sign_cert=chain, private_key=key, ta_url=None)  # b"" is an address
        with (
            c2pa.Context.from_dict({"verify": _OFFLINE | {"verify_trust": False}}) as context,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(_manifest(facts, media_type), context=context) as builder,
        ):
            builder.sign(signer, media_type, io.BytesIO(data), out)
    except c2pa.C2paError as error:
        raise ProvenanceError(f"{format} cannot be signed with {algorithm}: {error}") from error
    signed = out.getvalue()
    read_credentials(signed, format)
    return signed


def read_credentials(data: bytes, format: str, *, trust_anchors: Pem | None = None) -> dict[str, Any]:
    """What a signed file says of itself, after its signature and every byte of it were checked.

    Returns `facts`, `ai_generated`, `generator`, `version`, `issuer`, `common_name`, `algorithm`, and `trusted`:
    whether the certificate comes from one of `trust_anchors`. Without them anybody's certificate will do, and
    `trusted` is False: the file is unchanged since it was signed, by whom is not known.

    Raises:
        AudioFormatError: for a format that cannot carry credentials.
        ProvenanceError: for a file without credentials, or one that was changed.
    """
    media_type = _media_type(format)
    settings: dict[str, Any] = {"verify": _OFFLINE | {"verify_trust": trust_anchors is not None}}
    if trust_anchors is not None:
        settings["trust"] = {"trust_anchors": _pem(trust_anchors, "trust anchors").decode()}
    c2pa = _c2pa()
    try:
        with (
            c2pa.Context.from_dict(settings) as context,
            c2pa.Reader(media_type, io.BytesIO(data), context=context) as reader,
        ):
            state, report = reader.get_validation_state(), json.loads(reader.json())
    except c2pa.C2paError as error:
        raise ProvenanceError(f"this {format} has no credentials that can be read: {error}") from error
    if state not in ("Valid", "Trusted"):
        reasons = {item["code"]: None for item in report.get("validation_status", [])}
        raise ProvenanceError(f"the credentials of this {format} do not hold: {', '.join(reasons) or state}")
    manifest = report["manifests"][report["active_manifest"]]
    said = {item["label"]: item["data"] for item in manifest["assertions"]}
    actions = [action for label, data in said.items() if label.startswith(_ACTIONS) for action in data["actions"]]
    generator, signature = manifest["claim_generator_info"][0], manifest["signature_info"]
    return {
        "facts": json.loads(said.get(_FACTS, {}).get("json", "{}")),
        "ai_generated": any(action.get("digitalSourceType") == _AI_GENERATED for action in actions),
        "generator": generator.get("name"),
        "version": generator.get("version"),
        "issuer": signature.get("issuer"),
        "common_name": signature.get("common_name"),
        "algorithm": signature["alg"].lower(),
        "trusted": state == "Trusted",
    }


def check_signing(certificate: Pem | None, private_key: Pem | None, algorithm: str = "es256") -> None:
    """Sign a moment of silence, to find out early whether a certificate and its key can sign.

    Raises:
        ProvenanceError: as `sign` would, for a missing file or package, a wrong key, or a certificate out of date.
    """
    from acestep.audio import encode_audio

    silence = encode_audio(np.zeros((2, 4800), np.float32), 48_000, AudioFormat(format="wav"))
    sign(silence, "wav", facts={}, certificate=certificate, private_key=private_key, algorithm=algorithm)


def _manifest(facts: Mapping[str, Any], media_type: str) -> dict[str, Any]:
    agent = {"name": _GENERATOR, "version": __version__}
    created = {"action": "c2pa.created", "digitalSourceType": _AI_GENERATED, "softwareAgent": agent}
    return {
        "claim_generator_info": [agent],
        "format": media_type,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            # As text: c2pa takes lists of numbers for bytes, and refuses seeds of 64 bits.
            {"label": _FACTS, "data": {"json": json.dumps(dict(facts), allow_nan=False)}},
        ],
    }


def _media_type(format: str) -> str:
    if format not in SIGNABLE_FORMATS:
        raise AudioFormatError(f"{format} cannot carry content credentials; allowed: {', '.join(SIGNABLE_FORMATS)}")
    return AudioFormat(format=format).media_type  # type: ignore[arg-type]


def _pem(source: Pem | None, what: str) -> bytes:
    if source is None:
        raise ProvenanceError(f"signing needs a {what}: a PEM file")
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise ProvenanceError(f"the {what} {os.fspath(source)} cannot be read: {error.strerror}") from error


def _c2pa() -> Any:
    try:
        import c2pa
    except (ImportError, OSError) as error:
        raise ProvenanceError(f"content credentials need c2pa-python ({error}): {INSTALL_HINT}") from error
    return c2pa
