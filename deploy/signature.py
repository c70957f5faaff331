"""Sign records and check signatures (Ed25519, RFC 8032): 64 bytes in a .sig file beside the record. No torch here.

Keys are PEM files, such as of openssl (`perception sign --help`), which also checks a bundle without this program:

    openssl pkeyutl -verify -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig -pubin -inkey public.pem

The id of a key is the start of its fingerprint:

    openssl pkey -pubin -in public.pem -outform DER | sha256sum | cut -c 1-16
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from perception.errors import InputError


@dataclass(frozen=True)
class Signer:
    """A private key, ready to sign."""

    id: str  # of the public key
    sign: Callable[[bytes], bytes]  # content -> signature
    public: Ed25519PublicKey

    def has_signed(self, record: Path, content: bytes) -> bool:
        """Whether the .sig file beside `record` is this key's signature of `content`."""
        file = record.with_suffix(".sig")
        return file.is_file() and _valid(self.public, file.read_bytes(), content)


def signer(key: Path) -> Signer:
    """Load the private key in a PEM file."""
    make = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"
    try:
        private = load_pem_private_key(_read(key), password=None)
    except TypeError:
        raise InputError(f"{key}: the key is encrypted; give one without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{key}: not a private key in PEM; {make}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError(f"{key}: not an Ed25519 key; {make}")
    return Signer(_id(private.public_key()), private.sign, private.public_key())


def require_signed(record: Path, content: bytes, *keys: Path) -> str:
    """Check the signature of `content` in the .sig file beside `record`; returns the id of the key that made it."""
    public = {key: _public(key) for key in keys}
    file = record.with_suffix(".sig")
    trusted = " or ".join(f"{key} ({_id(each)})" for key, each in public.items())
    if not file.is_file():
        raise InputError(
            f"{record}: is not signed ({file.name} is missing), and only what {trusted} signed is accepted"
        )
    signature = file.read_bytes()
    for each in public.values():
        if _valid(each, signature, content):
            return _id(each)
    raise InputError(
        f"{file}: not the signature of {record.name} by the key {trusted}: one of them was changed, or it is another's"
    )


def _public(key: Path) -> Ed25519PublicKey:
    make = "make it with `openssl pkey -in key.pem -pubout -out public.pem`"
    try:
        public = load_pem_public_key(_read(key))
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{key}: not a public key in PEM; {make}") from None
    if not isinstance(public, Ed25519PublicKey):
        raise InputError(f"{key}: not an Ed25519 key; {make}")
    return public


def _valid(public: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    try:
        public.verify(signature, content)
    except InvalidSignature:
        return False
    return True


def _id(public: Ed25519PublicKey) -> str:
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()[:16]


def _read(key: Path) -> bytes:
    try:
        return key.read_bytes()
    except OSError as error:
        raise InputError(f"{key}: cannot read the key ({error.strerror})") from None
