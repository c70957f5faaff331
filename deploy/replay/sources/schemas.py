"""Messages of any type as objects with fields, by the schema that a recording carries."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from deploy.replay.sources.messages import CorruptMessage
from deploy.replay.sources.ros import TYPES

Parse = Callable[[bytes], Any]

_MAX_SCHEMA = 1 << 20  # characters
_MAX_ARRAY = 1 << 20
_MAX_UNROLLED = 256  # messages in an array, for each of which there is a line of code
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_/]{0,200}")
_NUMBERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_BASE = {"bool", "byte", "char", "octet", "float32", "float64", "string", "wstring", *_NUMBERS}
_SEPARATOR = "=" * 80 + "\n"


def cdr_parser(type_name: str, schema: str, language: str) -> Parse:
    """The parser of a ROS 2 type. It raises CorruptMessage if the bytes are damaged or the type is not known.

    Args:
        schema: with the types that it consists of; "": the recording has none, and ROS's own are used.
        language: `msg` or `idl`.
    """
    types, known = TYPES, type_name in TYPES.fielddefs
    if schema:
        try:
            types, known = get_typestore(Stores.EMPTY), True
            types.register(_definitions(type_name, schema, language))
        except Exception:  # a damaged schema can make the parser raise anything
            known = False

    def parse(data: bytes) -> Any:
        if not known:
            raise CorruptMessage("an unsupported message type")
        try:
            return types.deserialize_cdr(data, type_name)
        except Exception:  # its fields may be of types that the schema lacks
            raise CorruptMessage("bytes that cannot be parsed") from None

    return parse


def _definitions(type_name: str, schema: str, language: str) -> Any:
    """The types of a schema without its constants.

    `rosbags` makes code of them and runs it, so nothing but plain names and types is let through.
    """
    if len(schema) > _MAX_SCHEMA:
        raise ValueError("too long")
    if language == "msg":
        found = get_types_from_msg(schema, type_name)
    else:
        parts = [part.partition("\n")[2] for part in schema.split(_SEPARATOR)[1:]] or [schema]
        found = {name: each for part in parts for name, each in get_types_from_idl(part).items()}
    return {_name(name): ([], [(_name(each), _checked(kind)) for each, kind in found[name][1]]) for name in found}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError("an invalid name")
    return name


def _checked(description: Any) -> Any:
    kind, content = description
    if kind == Nodetype.NAME:
        return kind, _name(content)
    if kind == Nodetype.BASE:
        if content[0] not in _BASE or not isinstance(content[1], int):
            raise ValueError("an unknown type")
        return kind, content
    of, length = content
    if kind not in (Nodetype.ARRAY, Nodetype.SEQUENCE) or not isinstance(length, int):
        raise ValueError("an unknown type")
    if kind == Nodetype.ARRAY and not 0 < length <= (_MAX_ARRAY if of[0] == Nodetype.BASE else _MAX_UNROLLED):
        raise ValueError("an array of that length")
    return kind, (_checked(of), length)
