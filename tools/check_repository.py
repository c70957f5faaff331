"""Check what no test runs: imports between modules, locks, Dockerfiles, figures, and files that are named.

Prints a line for each finding, and ends with 1 if there is one. `make lint` runs it.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import figures
import mutants
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
REQUIREMENTS = ROOT / "requirements"
VEHICLE_EXTRAS = ("live",)  # what the vehicle gets beside the base and requirements/vehicle.in
DOCKERFILES = [ROOT / "docker" / name / "Dockerfile" for name in ("train", "vehicle")]
OLD = ("3.10", "3.11")  # their locks hold the oldest supported end
# Distribution of what is imported, where it has another name.
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless", "foxglove": "foxglove-sdk", "lzf": "python-neo-lzf", "PIL": "pillow",
    "foxglove_schemas_protobuf": "foxglove-schemas-protobuf", "mcap_protobuf": "mcap-protobuf-support",
    "rerun": "rerun-sdk", "yaml": "PyYAML", "zenoh": "eclipse-zenoh",
}  # fmt: skip

# What must not be imported on the vehicle, and what begins there.
ABSENT = ["torch", "torchvision", "timm", "onnx", "onnxscript", "accelerate"]
WORKSHOP = {
    *(f"deploy.{name}" for name in ("commands.demo", "export", "onnx_export", "plan", "precision", "street")),
}
# Imported late, in functions that the vehicle does not call: training, export, runs, and the official splits.
LATE_WORKSHOP = {
    "perception.predict",
    *("perception.tasks.network", "perception.tasks.map.network"),
    *(f"perception.tasks.detection.{name}" for name in ("center_head", "anchor_head", "targets")),
    *(f"perception.sensors.{name}.network" for name in ("lidar", "camera")),
    "perception.tasks.conditions.network",
    *("perception.tasks.points.network", "perception.tasks.occupancy.network"),
}
TRAINS = {"training", "commands", "mmdet3d"}  # parts of perception that may import the training
# TensorRT comes with the device, fsspec and ray with an extra; bindings of CUDA are imported by their name.
NOT_REQUIRED, BY_NAME = {"tensorrt", "tensorrt_rtx", "fsspec", "ray", "nuscenes"}, {"cuda-bindings"}


def requirements(file: Path) -> dict[str, Requirement]:
    """Requirement by distribution."""
    lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    return {requirement.name: requirement for requirement in map(Requirement, filter(None, lines))}


def declared(*extras: str) -> list[Requirement]:
    """The requirements of the package and of these extras; an extra that names others is replaced by theirs."""
    found, queue = list(map(Requirement, PROJECT["dependencies"])), list(extras)
    while queue:
        for requirement in map(Requirement, EXTRAS[queue.pop()]):
            if requirement.name == PROJECT["name"]:
                queue += requirement.extras
            else:
                found.append(requirement)
    return found


def vehicle_packages() -> dict[str, Requirement]:
    """What the vehicle installs: requirement by distribution."""
    declared_here = {requirement.name: requirement for requirement in declared(*VEHICLE_EXTRAS)}
    return declared_here | requirements(REQUIREMENTS / "vehicle.in")


def read_pins(lock: Path) -> dict[str, str]:
    """Version by distribution, in lower case; hashes are left out."""
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE))


def modules() -> dict[str, Path]:
    """File by the name of each module of `perception` and `deploy`."""
    found = [path for package in ("perception", "deploy") for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in found}


def imported(nodes: Iterable[ast.AST], ours: Set[str]) -> set[str]:
    """Names of the modules that these nodes import; of others than ours the package alone."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & ours) | ({node.module} if inside - ours else set())
    return {name if name in ours else name.split(".")[0] for name in found}


def layers() -> Iterator[str]:
    """perception imports nothing of deploy, what only predicts nothing of the training, and no module itself."""
    ours = modules()
    found = {name: imported(ast.walk(ast.parse(path.read_text())), ours.keys()) for name, path in ours.items()}
    arrows = {name: (others & ours.keys()) - {name} for name, others in found.items()}
    for name, others in arrows.items():
        for other in others if name.split(".")[0] == "perception" else ():
            if other.split(".")[0] == "deploy":
                yield f"{ours[name]}: imports {other}; perception imports nothing of deploy"
            if other.startswith("perception.training.") and name.split(".")[1] not in TRAINS:
                yield f"{ours[name]}: imports {other}; what only predicts needs no training"
    yield from circles(arrows)


def circles(arrows: Mapping[str, Set[str]]) -> Iterator[str]:
    """Files and folders within one folder that import each other, in functions or for types too."""
    rooms: dict[str, dict[str, set[str]]] = {}  # folder -> what is in it -> what of it that imports
    for name, others in arrows.items():
        parts = name.split(".")
        for depth in range(1, len(parts)):
            folder, here = rooms.setdefault(".".join(parts[:depth]), {}), ".".join(parts[: depth + 1])
            inside = (other.split(".") for other in others if other.startswith(".".join(parts[:depth]) + "."))
            folder.setdefault(here, set()).update({".".join(other[: depth + 1]) for other in inside} - {here})
    for graph in rooms.values():
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            yield f"these import each other: {' -> '.join(error.args[1][::-1])}"


def vehicle() -> list[str]:
    """The modules with which the vehicle begins."""
    names = (name for name in modules() if name.split(".")[0] == "deploy")
    own = sorted(name for name in names if name not in WORKSHOP and not name.startswith("deploy.precision."))
    return [
        *("perception.frame", "perception.grid", "perception.scene.scene", "perception.sensors.inputs"),
        *("perception.sensors.lidar.pillars", "perception.tasks.task"),
        *("perception.datasets.nuscenes.dataset", "perception.datasets.nuscenes.map_expansion"),
        *sorted(name for name in modules() if re.fullmatch(r"perception\.tasks\.\w+\.task", name)),
        *own,
    ]


def vehicle_requirements() -> Iterator[str]:
    """Every requirement is imported by the vehicle's modules or its command, and every import is a requirement."""
    ours, third, seen, queue = modules(), set[str](), set(LATE_WORKSHOP | WORKSHOP), vehicle()
    while queue:
        module = queue.pop()
        if module in seen:
            continue
        seen.add(module)
        tree = ast.parse(ours[module].read_text())
        for name in imported(tree.body if ".commands." in module else ast.walk(tree), ours.keys()):
            if name in ours:
                queue.append(name)
            else:
                third.add(name)
    needed = {DISTRIBUTIONS.get(name, name) for name in third - set(sys.stdlib_module_names) - NOT_REQUIRED} | BY_NAME
    wanted = vehicle_packages()
    for name in needed ^ wanted.keys():
        yield f"{name} is {'required, not imported' if name in wanted else 'imported, not required'} on the vehicle"
    for lock in REQUIREMENTS.glob("jetpack*.txt"):
        versions = read_pins(lock)
        for name in {*ABSENT, "nuscenes-devkit", "matplotlib"} & versions.keys():
            yield f"{lock}: {name} is of the workshop"
        yield from _out_of_range(lock, wanted.values())


def locks() -> Iterator[str]:
    found = {path.stem.removeprefix("py"): path for path in REQUIREMENTS.glob("py3.*.txt")}
    wanted = SpecifierSet(PROJECT["requires-python"])
    supported = {version for version in (f"3.{i}" for i in range(100)) if version in wanted}
    for version in found.keys() ^ supported:
        yield f"requirements/py{version}.txt: {'is missing' if version in supported else 'is of no supported Python'}"
    for version, path in found.items():
        versions = read_pins(path)
        extras = ("all", "rtx", "devkit", "dev", *(["mmdet3d"] if version in OLD else []))
        yield from _out_of_range(path, declared(*extras))
        for line in path.read_text().splitlines():
            if not re.fullmatch(r"#.*|[a-z0-9-]+==[\w.!]+", line):  # a local version, an address, an index or a path
                yield f"{path}: {line!r} belongs to one machine"
        ends = tuple(versions.get(name, "").split(".")[0] for name in ("numpy", "opencv-python-headless"))
        if ends != (("1", "4") if version in OLD else ("2", "5")):
            yield f"{path}: holds numpy {ends[0]} and OpenCV {ends[1]}, which is another end of what is supported"


def _out_of_range(lock: Path, wanted: Iterable[Requirement]) -> Iterator[str]:
    versions = read_pins(lock)
    for requirement in wanted:
        version = versions.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version):
            yield f"{lock}: {requirement} is {version or 'not locked'}; run `make lock`"


def arguments(file: Path, instruction: str) -> list[str]:
    """Arguments of all lines with the instruction, with continued lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split(maxsplit=1)[1] for line in text.splitlines() if line.startswith(f"{instruction} ")]


def dockerfiles() -> Iterator[str]:
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    for file in DOCKERFILES:
        sources = {source for copy in arguments(file, "COPY") for source in shlex.split(copy)[:-1]}
        for source in {"perception", "deploy", "configs", "pyproject.toml", *sources}:
            if source not in sources or not (ROOT / source).exists() or f"!{source}" not in kept:
                yield f"{file}: {source} is not copied, not there, or in .dockerignore"
        hadolint = [str(Path(sys.executable).with_name("hadolint")), "--no-color", str(file)]
        yield from subprocess.run(hadolint, check=False, capture_output=True, text=True).stdout.splitlines()
    pins = dict(re.findall(r" ([\w-]+)==([\d.]+)", " ".join(" ".join(arguments(DOCKERFILES[0], "RUN")).split())))
    compiled = requirements(REQUIREMENTS / "mmdet3d.txt")["onedl-mmcv"]
    for requirement in (*declared("export", "mmdet3d"), compiled):
        if requirement.name in pins and not requirement.specifier.contains(pins[requirement.name]):
            yield f"{DOCKERFILES[0]}: {requirement.name} {pins[requirement.name]} is not {requirement}"


def pages() -> Iterator[str]:
    record, readme = json.loads(figures.RECORD.read_text()), figures.README.read_text()
    if figures.PAGE.read_text() != figures.page(record):
        yield f"{figures.PAGE}: is not what {figures.RECORD.name} says; run `python tools/figures.py --write`"
    if figures.with_block(readme, figures.quote(record)) != readme:
        yield f"{figures.README}: is not what {figures.RECORD.name} says; run `python tools/figures.py --write`"
    for section, entry in record.items():
        if entry["command"] != figures.COMMANDS.get(section) and not re.match(r"[0-9a-f]{7,40}:", entry["command"]):
            yield f"{figures.RECORD}: {section} was measured by no command of tools/figures.py, and names no commit"
        if not re.fullmatch(r"[0-9a-f]{7,40}", entry["commit"]):
            yield f"{figures.RECORD}: {section} was measured on a tree that was not committed"


def named_files() -> Iterator[str]:
    """Files of tests, and on pages also of tools, that are named without a commit and are not there."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for file in map(Path, tracked.splitlines()):
        pages = file.suffix == ".md" or file.name == "Makefile"
        if not pages and (file.suffix not in (".py", ".toml", "") or file.parts[0] == "tests"):
            continue
        folders = "tests|tools" if pages else "tests"
        for name in set(re.findall(rf"(?<![\w/:])(?:{folders})/[\w/]+\.\w+", (ROOT / file).read_text())):
            if not (ROOT / name).exists():
                yield f"{file}: names {name}, which is not there"


def defects() -> Iterator[str]:
    """Defects written by hand that cannot be made."""
    for defect in mutants.read_defects(ROOT):
        if wrong := mutants.misplaced(ROOT, defect):
            yield f"tools/mutants.yaml: {defect.why}: {wrong}"


def main() -> None:
    checks = (layers, vehicle_requirements, locks, dockerfiles, pages, named_files, defects)
    findings = [finding for check in checks for finding in check()]
    print(*findings, sep="\n", end="\n" if findings else "")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
