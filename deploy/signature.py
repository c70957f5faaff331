"""Signatures (Ed25519, RFC 8032) tell who made a bundle; hashes tell only that it is whole. No torch here.

Keys are PEM files, made with

    openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem

A signature is its bare 64 bytes, in a .sig file beside the record that it signs. What a bundle says of itself can thus
be checked without this program:

    openssl pkeyutl -verify -rawin -in manifest.json -sigfile manifest.sig -pubin -inkey public.pem
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from perception.errors import InputError

Sign = Callable[[bytes], bytes]  # content -> signature


def signer(key: Path) -> Sign:
    """What signs with the private key in a PEM file.

    Raises:
        InputError: the file is no such key, or is encrypted.
    """
    make = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"
    try:
        private = load_pem_private_key(_read(key), password=None)
    except TypeError:
        raise InputError(f"{key}: the key is encrypted; give one without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{key}: not a private key in PEM; {make}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError(f"{key}: not an Ed25519 key; {make}")
    return private.sign


def require_signed(record: Path, content: bytes, key: Path) -> None:
    """Raise InputError unless the .sig file beside `record` is the signature of `content` by this public key.

    Args:
        key: PEM file.
    """
    make = f"make it with `openssl pkey -in key.pem -pubout -out {key.name}`"
    try:
        public = load_pem_public_key(_read(key))
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{key}: not a public key in PEM; {make}") from None
    if not isinstance(public, Ed25519PublicKey):
        raise InputError(f"{key}: not an Ed25519 key; {make}")
    file = record.with_suffix(".sig")
    if not file.is_file():
        raise InputError(f"{record}: is not signed ({file.name} is missing), and only what {key} signed is accepted")
    try:
        public.verify(file.read_bytes(), content)
    except InvalidSignature:
        raise InputError(
            f"{file}: not the signature of {record.name} by the key {key}: one of them was changed, or it is another's"
        ) from None


def _read(key: Path) -> bytes:
    try:
        return key.read_bytes()
    except OSError as error:
        raise InputError(f"{key}: cannot read the key ({error.strerror})") from None
