"""Content credentials in real files, with certificates of our own: signed, read back, tampered with."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from acestep import __version__
from acestep.audio import encode_audio, load_audio
from acestep.audio_format import KINDS, AudioFormat
from acestep.errors import AudioFormatError
from acestep.provenance import SIGNABLE_FORMATS, ProvenanceError, check_signing, read_credentials, sign

RATE = 48_000
SONG = (0.1 * np.random.default_rng(0).standard_normal((2, RATE))).astype(np.float32)
FACTS = {"model": "tiny", "fingerprint": "0123456789abcdef", "seed": 2**64 - 1, "lora": ["a:0.5"], "version": "0.1.0"}


class Identity(NamedTuple):
    chain: bytes
    key: bytes
    root: bytes


def identity(key: Any = None, days: int = 30, ended: int = 0) -> Identity:
    """A certificate of an authority of our own, and the key that it is for."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    root_key = ec.generate_private_key(ec.SECP256R1())
    until = datetime.now(timezone.utc) + timedelta(days=-ended if ended else days)

    def certificate(common_name: str, public_key: Any, is_root: bool) -> x509.Certificate:
        subject, issuer = (
            x509.Name(
                [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Studio")]
            )
            for name in (common_name, "Root")
        )
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
        )
        builder = (
            x509.CertificateBuilder(issuer, subject, public_key, x509.random_serial_number())
            .not_valid_before(until - timedelta(days=60))
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(is_root, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not is_root,
                    key_cert_sign=is_root,
                    encipher_only=False,
                    decipher_only=False,
                    **usage,
                ),
                critical=True,
            )
        )
        if not is_root:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=False)
        return builder.sign(root_key, hashes.SHA256())

    root = certificate("Root", root_key.public_key(), True).public_bytes(Encoding.PEM)
    leaf = certificate("Signer", key.public_key(), False).public_bytes(Encoding.PEM)
    return Identity(leaf + root, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), root)


@pytest.fixture(scope="module")
def us() -> Identity:
    return identity()


def file(format: str) -> bytes:
    return encode_audio(SONG, RATE, AudioFormat(format=format), {"title": "A song", "comment": "said before"})


def signed(us: Identity, format: str, facts: dict[str, Any] = FACTS) -> bytes:
    return sign(file(format), format, facts=facts, certificate=us.chain, private_key=us.key)


@pytest.mark.parametrize("format", SIGNABLE_FORMATS)
def test_a_signed_file_says_what_made_it_and_sounds_the_same(us: Identity, format: str, tmp_path: Path) -> None:
    data = signed(us, format)
    assert read_credentials(data, format) == {
        "facts": FACTS,
        "ai_generated": True,
        "generator": "acestep-ray",
        "version": __version__,
        "issuer": "Studio",
        "common_name": "Signer",
        "algorithm": "es256",
        "trusted": False,
    }
    before, after = load_audio(file(format)), load_audio(data)
    assert before[1] == after[1]
    np.testing.assert_array_equal(before[0].numpy(), after[0].numpy())
    path = tmp_path / f"song.{format}"
    path.write_bytes(data)
    with soundfile.SoundFile(path) as read:
        assert (read.title, read.comment) == ("A song", "said before")


@pytest.mark.parametrize("format", SIGNABLE_FORMATS)
def test_a_changed_byte_of_sound_or_of_facts_is_found(us: Identity, format: str) -> None:
    data = signed(us, format)
    for position in (len(data) - len(file(format)) // 2, data.index(b"0123456789abcdef"), data.index(b"A song")):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(ProvenanceError, match=r"do not hold: .*mismatch|no credentials that can be read"):
            read_credentials(bytes(changed), format)


@pytest.mark.parametrize("format", SIGNABLE_FORMATS)
def test_files_without_credentials_say_so(us: Identity, format: str) -> None:
    for data in (file(format), b"", b"garbage" * 99, signed(us, format)[:2000]):
        with pytest.raises(ProvenanceError, match=f"this {format} has no credentials that can be read"):
            read_credentials(data, format)


def test_only_a_known_root_makes_a_file_trusted(us: Identity, tmp_path: Path) -> None:
    data = signed(us, "mp3")
    root = tmp_path / "root.pem"
    root.write_bytes(us.root)
    assert read_credentials(data, "mp3", trust_anchors=root)["trusted"]
    assert not read_credentials(data, "mp3", trust_anchors=identity().root)["trusted"]


def test_signing_twice_gives_two_files_with_one_set_of_facts(us: Identity) -> None:
    one, two = signed(us, "flac"), signed(us, "flac")
    assert one != two
    assert read_credentials(one, "flac") == read_credentials(two, "flac")


@pytest.mark.parametrize(
    ("algorithm", "key"),
    [
        ("es256", ec.generate_private_key(ec.SECP256R1())),
        ("es384", ec.generate_private_key(ec.SECP384R1())),
        ("es512", ec.generate_private_key(ec.SECP521R1())),
        ("ps256", rsa.generate_private_key(65537, 2048)),
        ("ed25519", ed25519.Ed25519PrivateKey.generate()),
    ],
)
def test_every_kind_of_key_can_sign(algorithm: str, key: Any, tmp_path: Path) -> None:
    chain, private = tmp_path / "chain.pem", tmp_path / "key.pem"
    us = identity(key)
    chain.write_bytes(us.chain)
    private.write_bytes(us.key)
    check_signing(chain, str(private), algorithm)
    data = sign(file("wav"), "wav", facts=FACTS, certificate=str(chain), private_key=private, algorithm=algorithm)
    assert read_credentials(data, "wav")["algorithm"] == algorithm


@settings(max_examples=25)
@given(
    st.dictionaries(
        st.text(max_size=9),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=6,
        ),
        max_size=5,
    )
)
def test_whatever_json_can_say_comes_back(us: Identity, facts: dict[str, Any]) -> None:
    assert read_credentials(signed(us, "mp3", facts), "mp3")["facts"] == facts


def test_ogg_files_cannot_be_signed(us: Identity) -> None:
    assert set(KINDS) - set(SIGNABLE_FORMATS) == {"ogg", "opus"}
    for format in ("ogg", "opus", "aiff"):
        message = f"{format} cannot carry content credentials; allowed: wav, flac, mp3"
        with pytest.raises(AudioFormatError, match=message):
            sign(b"", format, facts={}, certificate=us.chain, private_key=us.key)
        with pytest.raises(AudioFormatError, match=message):
            read_credentials(b"", format)


def test_what_cannot_sign_is_found_early(us: Identity, tmp_path: Path) -> None:
    for certificate, key, algorithm, message in (
        (None, us.key, "es256", "signing needs a certificate"),
        (us.chain, None, "es256", "signing needs a private key"),
        (tmp_path / "none.pem", us.key, "es256", r"the certificate .*none.pem cannot be read: No such file"),
        (us.chain, tmp_path, "es256", "the private key .* cannot be read: Is a directory"),
        (us.chain, us.key, "es384", "wav cannot be signed with es384"),
        (us.chain, us.key, "sha1", "wav cannot be signed with sha1"),
        (us.chain, b"no key", "es256", "wav cannot be signed with es256"),
        (b"no certificate", us.key, "es256", "wav cannot be signed with es256"),
        (us.chain, identity().key, "es256", "signature does not match"),
        (identity(ended=1).chain, us.key, "es256", "not valid at time of signing"),
    ):
        with pytest.raises(ProvenanceError, match=message):
            check_signing(certificate, key, algorithm)


def test_without_the_extra_it_is_named(us: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ProvenanceError, match=r'need c2pa-python .*: pip install "acestep-ray\[provenance\]"'):
        check_signing(us.chain, us.key)


def test_the_module_is_cheap_to_import() -> None:
    code = "import sys, acestep.provenance; print({'c2pa', 'torch', 'cryptography'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
