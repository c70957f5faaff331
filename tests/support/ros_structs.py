"""C++ structures of ROS 2 messages by Debian's rosidl, without ROS."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rosbags.interfaces import Nodetype

from deploy.recordings.ros_types import TYPES

GENERATE = """
import json, pathlib, sys
from rosidl_adapter.msg import convert_msg_to_idl
from rosidl_generator_cpp import generate_cpp

root = pathlib.Path(sys.argv[1])
for package in (root / "msg").iterdir():
    idl = root / "idl" / package.name
    for each in package.glob("msg/*.msg"):
        convert_msg_to_idl(package, package.name, each.relative_to(package), idl / "msg")
    arguments = {
        "package_name": package.name, "output_dir": str(root / "include" / package.name),
        "template_dir": "/usr/share/rosidl_generator_cpp/resource", "target_dependencies": [],
        "idl_tuples": [f"{idl}:msg/{each.name}" for each in (idl / "msg").iterdir()],
    }
    (root / "arguments.json").write_text(json.dumps(arguments))
    generate_cpp(str(root / "arguments.json"))
"""


def write_structs(folder: Path, names: Sequence[str]) -> Path:
    """The structures of these messages, such as std_msgs/msg/Header, and of those inside.

    Returns:
        The folder with PACKAGE/msg/NAME.hpp, and definitions.hpp: each(message, visit) for every message.
    """
    every: dict[str, Any] = {}
    _collect(names, every)
    for name, fields in every.items():
        file = folder / "msg" / f"{name}.msg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{_text(kind)} {field}\n" for field, kind in fields))
    # Debian's Python has the generator, in whatever environment this one is.
    subprocess.run(["/usr/bin/python3", "-I", "-c", GENERATE, str(folder)], check=True, capture_output=True)
    include = folder / "include"
    headers = [file.relative_to(include) for file in sorted(include.glob("*/msg/*.hpp"))]
    lines = [f'#include "{header}"' for header in headers]
    for name, fields in every.items():
        visits = " ".join(f"visit(message.{field});" for field, _ in fields)
        kind = name.replace("/", "::")
        lines.append(f"template <class Visit> void each({kind} &message, const Visit &visit) {{ {visits} }}")
    (include / "definitions.hpp").write_text("\n".join(lines) + "\n")
    return include


def _collect(names: Sequence[str], every: dict[str, Any]) -> None:
    for name in names:
        if name not in every:
            fields = TYPES.fielddefs[name][1]
            _collect([inner for _, kind in fields for inner in _named(kind)], every)
            every[name] = fields


def _named(kind: Any) -> list[str]:
    node, value = kind
    return [] if node == Nodetype.BASE else [value] if node == Nodetype.NAME else _named(value[0])


def _text(kind: Any) -> str:
    node, value = kind
    if node == Nodetype.BASE:
        return str(value[0])
    if node == Nodetype.NAME:
        return str(value).replace("/msg/", "/")
    return f"{_text(value[0])}[{'' if node == Nodetype.SEQUENCE else value[1]}]"
