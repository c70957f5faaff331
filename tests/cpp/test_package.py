"""The installed library: what finds it, what it finds, and Python beside one that cannot be used."""

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copy

import pytest
import tessera_runtime as native
from both_runtimes import with_recorded_plan
from exported import bundle, remembering
from once import once
from recorded_engine import TARGET
from repository import ROOT

BUILT = Path(os.environ[native.LIBRARY]).parent
EXAMPLE = ROOT / "deploy" / "cpp" / "examples" / "run_folder.c"
PROJECT = f"""
cmake_minimum_required(VERSION 3.25)
project(host LANGUAGES C)
find_package(tessera 1.0 REQUIRED)
add_executable(host {EXAMPLE})
target_link_libraries(host PRIVATE tessera::tessera)
"""
PART = f"""
cmake_minimum_required(VERSION 3.25)
project(host LANGUAGES C CXX)
add_subdirectory({ROOT}/deploy/cpp tessera)
add_executable(host host.c)
target_link_libraries(host PRIVATE tessera::tessera)
"""
HOST = '#include <stdio.h>\n#include <tessera.h>\nint main(void) { return printf("%s", tessera_version()) < 0; }\n'
pytestmark = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="programs without the sanitizers do not link such a library"
)


def run(*words: object, **variables: str) -> str:
    environment = os.environ | variables
    return subprocess.run(list(map(str, words)), env=environment, check=True, capture_output=True, text=True).stdout


def exported(library: str) -> set[str]:
    return {line.split()[-1] for line in run("nm", "-DC", "--defined-only", BUILT / library).splitlines()}


def installed() -> Path:
    """A prefix that was moved after the installation."""

    def make(out: Path) -> None:
        run("cmake", "--install", BUILT, "--prefix", out / "first")
        (out / "first").rename(out / "prefix")

    return once("installed", make) / "prefix"


def test_the_library_needs_no_version_of_onnx_runtime() -> None:
    (library,) = installed().glob("lib*/**/libtessera.so.1")
    assert "onnxruntime" not in run("readelf", "-d", library)
    assert "OrtGetApiBase" not in run("nm", "-D", library)


def test_the_library_exports_its_interface_alone() -> None:
    declared = re.findall(
        r"TESSERA_API [\w ]+?[ *](tessera_\w+)\(", (ROOT / "deploy/cpp/include/tessera.h").read_text()
    )
    assert len(declared) == 15
    assert exported("libtessera.so") == {*declared}


@pytest.mark.parametrize("engine", ["recorded_engine", "tensorrt_rtx"])
def test_an_engine_exports_its_table_alone(engine: str, request: pytest.FixtureRequest) -> None:
    if engine == "tensorrt_rtx":
        request.getfixturevalue("headers")
    assert exported(f"lib{engine}.so") == {"tessera_engine"}


def test_the_library_leaves_its_host_s_environment_alone() -> None:
    """Another thread of the host may read it."""
    used = {line.split()[-1].partition("@")[0] for line in run("nm", "-Du", BUILT / "libtessera.so").splitlines()}
    assert "dlopen" in used
    assert not used & {"setenv", "putenv", "unsetenv", "clearenv"}


@pytest.mark.slow("exports a network")
def test_a_project_finds_the_library_and_the_library_an_engine_beside_it(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "frames.txt").write_text("")
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed()}")
    run("cmake", "--build", tmp_path / "build")
    run(tmp_path / "build" / "host", bundle().path, tmp_path / "frames")  # with the golden frames
    (library,) = installed().glob("lib*/**/libtessera.so.1")
    copy(BUILT / "librecorded_engine.so", library.with_name("libtessera_tensorrt.so"))
    with_recorded_plan(remembering(), tmp_path / "bundle", ())
    run(tmp_path / "build" / "host", tmp_path / "bundle", tmp_path / "frames", TARGET)


@pytest.mark.slow("compiles the library")
def test_a_project_has_the_library_as_a_part_whatever_its_compiler_warns_of(tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(PART)
    (tmp_path / "host.c").write_text(HOST)
    run(
        "cmake", "-S", tmp_path, "-B", tmp_path / "build", "-GNinja", "-DTESSERA_TESTS=ON", "-DCMAKE_CXX_FLAGS=-Wpadded"
    )
    assert "warning: " in run("cmake", "--build", tmp_path / "build", "--target", "host")
    assert run(tmp_path / "build" / "host") == native.load().tessera_version().decode()


def test_pkg_config_follows_the_prefix() -> None:
    (file,) = installed().glob("lib*/**/tessera.pc")
    words = run("pkg-config", "--cflags", "--libs", "tessera", PKG_CONFIG_PATH=str(file.parent)).split()
    found = {word[:2]: Path(word[2:]).resolve() for word in words if word[:2] in ("-I", "-L")}
    assert (found["-I"] / "tessera.h").is_file()
    assert (found["-L"] / "libtessera.so").is_file()
    assert installed() in found["-L"].parents


def test_python_makes_pillars_itself_where_the_library_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "libtessera.so").write_bytes(b"of another machine")
    code = "from perception.sensors import native; print(native.NATIVE)"
    environment = os.environ | {native.LIBRARY: str(tmp_path / "libtessera.so")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "None\n"
    assert done.stderr.count("tessera_runtime: cannot be used (") == 1
    assert "tessera_runtime" in run(sys.executable, "-c", code)


def test_an_empty_target_is_the_cpu_and_there_are_no_negative_threads() -> None:
    native.Runtime(bundle().path, target="").close()
    with pytest.raises(native.Failure, match="threads: is -1"):
        native.Runtime(bundle().path, threads=-1)
