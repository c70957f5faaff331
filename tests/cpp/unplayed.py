"""Writes the abstract classes of TensorRT's headers with a body for each function that ends the process."""

import re
import sys
from pathlib import Path

CLASSES = {
    "NvInferImpl.h": ("nvinfer1::apiv", ("VRuntime", "VCudaEngine", "VExecutionContext", "VRefitter")),
    "NvOnnxParser.h": ("nvonnxparser", ("IParserRefitter",)),
}
FUNCTION = re.compile(r"virtual ([^;{}]*?\b(\w+)\([^;{}]*\)(?: const)?(?: noexcept)?)\s*= 0;")


def code(headers: Path) -> str:
    """Classes `Unplayed<...>` for the headers in a folder, which tensorrt.cpp derives from."""
    lines = ["#pragma once", "#include <NvOnnxParser.h>", "#include <cstdio>", "#include <cstdlib>"]
    lines += ["[[noreturn]] inline void unplayed(const char *name) { std::fputs(name, stderr), std::abort(); }"]
    for file, (namespace, names) in CLASSES.items():
        content = re.sub(r"//.*", "", (headers / file).read_text())
        for name in names:
            (body,) = re.findall(rf"^class {name}\b[^;{{]*\{{(.*?)^\}};", content, re.MULTILINE | re.DOTALL)
            functions = [f'{each} override {{ unplayed("{called}"); }}' for each, called in FUNCTION.findall(body)]
            lines += [f"namespace {namespace} {{ struct Unplayed{name} : {name} {{", *functions, "}; }"]
    return "\n".join(lines) + "\n"


Path(sys.argv[2]).write_text(code(Path(sys.argv[1])))
