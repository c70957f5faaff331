.PHONY: environment demo demo-quick test test-newest test-scale test-readme cpp tidy test-cpp lint lock overfit real figures install-mmdet3d test-mmdet3d bench-quick mutants check

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("{}.{}".format(*sys.version_info))')
LOCK := requirements/py$(VERSION).txt
# Named by the Python's version, so that an environment made with another one is made anew.
INSTALLED := $(VENV)/installed-$(VERSION)
# Python compiles what it imports; all that pip installs would take it longer. It must keep what it compiled, else
# every process compiles torch anew.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL = pip install --quiet --no-compile --constraint $(LOCK)

# tensorrt-rtx compiles engines without a GPU.
$(INSTALLED): pyproject.toml $(LOCK) requirements/devkit.txt requirements/cpp.txt
	$(PYTHON) -m venv $(if $(wildcard $@),,--clear) $(VENV)
	$(BIN)/$(PIP_INSTALL) --upgrade pip
	$(BIN)/$(PIP_INSTALL) --editable '.[all,rtx,devkit,dev]'
	$(BIN)/pip install --quiet --no-compile --no-deps --ignore-requires-python --requirement requirements/devkit.txt \
	--requirement requirements/cpp.txt
	touch $@

environment: $(INSTALLED)

requirements/py%.txt:
	@echo "Python $* has no locked packages ($@); Python 3.10 to 3.14 have: make PYTHON=python3.13 ..." >&2; exit 1

demo: $(INSTALLED)
	$(BIN)/perception demo

# The quick demo runs a network that comes along: a small environment of its own, without torch, is enough.
QUICK := .venv-quick
$(QUICK)/installed-$(VERSION): pyproject.toml $(LOCK)
	$(PYTHON) -m venv --clear $(QUICK)
	$(QUICK)/bin/$(PIP_INSTALL) --editable .
	touch $@

demo-quick: $(QUICK)/installed-$(VERSION)
	$(QUICK)/bin/perception demo --quick

# A process for each core and one more, so torch needs no second thread; a file's tests share what they prepare, and the
# longest files come first (tests/conftest.py).
PYTEST := python -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart=0 --durations=25

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST)

# For a second Python, whose packages differ and whose logic does not: quick tests with few draws, and the journeys.
test-newest: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) --hypothesis-profile=few -m "not slow or journey"

# Several processes and machines: clusters, servers, kills; a network of full size; the commands of README and docs/guide.md.
test-scale: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) tests/scale

test-readme: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) tests/scale/test_readme.py

# The C++ runtime, with the library of the installed onnxruntime, so that it computes what Python does. Compilers and
# headers are Debian's.
CPP := runs/cpp
CPP_CODE := $(wildcard deploy/cpp/*/*.[ch]pp deploy/cpp/*/*.[ch] deploy/cpp/tests/*/*.[ch]* deploy/ros2/src/*.cpp deploy/ros2/include/*/*.hpp)
CPP_PACKAGES := g++ cmake ninja-build pkg-config libonnxruntime-dev nlohmann-json3-dev libssl-dev zlib1g-dev \
	libfastcdr-dev rosidl-generator-c-cpp libopencv-core-dev libopencv-imgproc-dev libconsole-bridge-dev liborocos-kdl-dev

$(CPP)/nvidia: requirements/nvidia.txt $(INSTALLED)
	rm -rf $@
	$(BIN)/pip install --quiet --no-compile --no-deps --only-binary :all: --target $@ --requirement $<

# Headers of TensorRT and of ROS 2, which are in no registry; tests that need them are skipped where they are not.
HEADERS := $(wildcard $(or $(PERCEPTION_HEADERS),../shared/headers/headers.tar.xz))
$(CPP)/headers: $(HEADERS)
	rm -rf $@ && mkdir -p $@ && tar xJf $< -C $@

.PRECIOUS: $(CPP)/%/build.ninja
$(CPP)/%/build.ninja: $(wildcard deploy/cpp/CMake* deploy/cpp/cmake/*) $(CPP)/nvidia $(if $(HEADERS),$(CPP)/headers)
	@dpkg -s $(CPP_PACKAGES) >/dev/null 2>&1 || { echo "apt-get install $(CPP_PACKAGES)" >&2; exit 1; }
	ln -sf $$($(BIN)/python -c 'import onnxruntime as o, pathlib; print(*pathlib.Path(o.__file__).parent.glob("capi/libonnxruntime.so*"))') $(CPP)/libonnxruntime.so.1
	cmake -S deploy/cpp --preset $* -DONNXRUNTIME_LIBRARY=$(CURDIR)/$(CPP)/libonnxruntime.so.1 --log-level=WARNING \
	  -DNVIDIA_PACKAGES=$(CURDIR)/$(CPP)/nvidia -DHEADERS=$(if $(HEADERS),$(CURDIR)/$(CPP)/headers) \
	  "-DTENSORRT_RTX_LIBRARIES=$$(ls $(CURDIR)/$(VENV)/lib/python*/site-packages/tensorrt_rtx_libs/*.so.1 2>/dev/null | paste -sd ';')"
	touch $@

$(CPP)/%/built: $(CPP_CODE) $(CPP)/%/build.ninja
	cmake --build $(@D) && touch $@

CPP_PRESET ?= release

cpp: $(CPP)/$(CPP_PRESET)/built

# Each file again when it or a header has changed.
TIDY_FILES ?= $(wildcard deploy/cpp/src/*.cpp)
TIDY := $(patsubst deploy/cpp/src/%.cpp,$(CPP)/tidy/%,$(TIDY_FILES))
$(CPP)/tidy/%: deploy/cpp/src/%.cpp $(wildcard deploy/cpp/*/*.h*) deploy/cpp/.clang-tidy $(CPP)/release/build.ninja
	@mkdir -p $(@D)
	$(BIN)/clang-tidy --quiet -p $(CPP)/release $< && touch $@

tidy: $(INSTALLED)
	$(MAKE) --silent --jobs $$(nproc) $(TIDY)

# The sanitizers are loaded before Python, which frees not all of its memory at its end, with the C++ whose exceptions
# they see.
SANITIZERS := $(if $(filter sanitize,$(CPP_PRESET)),LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 TESSERA_MUTATIONS=10000 PYTEST_ADDOPTS="-o faulthandler_timeout=7200")

test-cpp: $(CPP)/$(CPP_PRESET)/built
	$(SANITIZERS) OMP_NUM_THREADS=1 PYTHONPATH=deploy/cpp/python TESSERA_LIBRARY=$(CURDIR)/$(<D)/libtessera.so $(BIN)/$(PYTEST) tests/cpp

# mmdet3d needs numpy 1, which the locks of Python 3.10 and 3.11 hold, so it has an environment of its own.
# mmcv's operators are compiled, once per machine: pip's cache keeps the wheel.
MMDET3D := .venv-mmdet3d
MMDET3D_INSTALLED := $(MMDET3D)/installed-$(VERSION)

$(MMDET3D_INSTALLED): pyproject.toml $(LOCK) requirements/devkit.txt requirements/mmdet3d.txt
	@grep -q '^numpy==1' $(LOCK) || { echo "mmdet3d needs numpy 1: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(if $(wildcard $@),,--clear) $(MMDET3D)
	$(MMDET3D)/bin/$(PIP_INSTALL) --upgrade pip
	$(MMDET3D)/bin/$(PIP_INSTALL) --editable '.[export,pretrained,rtx,devkit,dev,mmdet3d]'
	$(MMDET3D)/bin/pip install --no-build-isolation --no-deps --requirement requirements/devkit.txt \
	--requirement requirements/mmdet3d.txt
	touch $@

install-mmdet3d: $(MMDET3D_INSTALLED)

test-mmdet3d: $(MMDET3D_INSTALLED)
	OMP_NUM_THREADS=1 $(MMDET3D)/bin/$(PYTEST) tests/mmdet3d

# Every Python's packages anew, whether or not that Python is installed. 3.10, 3.11 and JetPack 6 get the oldest supported
# end (numpy 1.26, OpenCV 4.11, torch 2.13), the others the newest of everything: the gate's 3.11 and 3.13 test both ends.
# `make test` uses the locks as constraints, so a build of torch without CUDA leaves NVIDIA's packages out.
RESOLVE := uv pip compile --quiet --upgrade --no-python-downloads --no-annotate --only-binary :all: \
	--custom-compile-command 'make lock'
HERE := --python-platform x86_64-manylinux_2_31 --no-binary tensorrt-rtx --no-binary tensorrt-rtx-cu13 \
	--extra all --extra rtx --extra devkit --extra dev pyproject.toml
VEHICLE := --python-platform aarch64-manylinux_2_28 --generate-hashes --extra live pyproject.toml requirements/vehicle.in
OLDEST := --constraint requirements/oldest.in

lock: $(INSTALLED)
	set -e; for version in 3.10 3.11; do $(BIN)/$(RESOLVE) --python-version $$version --output-file requirements/py$$version.txt \
	$(OLDEST) --extra mmdet3d $(HERE); done
	set -e; for version in 3.12 3.13 3.14; do $(BIN)/$(RESOLVE) --python-version $$version \
	--output-file requirements/py$$version.txt $(HERE); done
	$(BIN)/$(RESOLVE) --python-version 3.10 --output-file requirements/jetpack6.txt $(OLDEST) $(VEHICLE)
	$(BIN)/$(RESOLVE) --python-version 3.12 --output-file requirements/jetpack7.txt $(VEHICLE)

# Types are checked with the locks of Python 3.10 and 3.11: the newest numpy and OpenCV declare other types.
lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --style=file:deploy/.clang-format --dry-run --Werror $(CPP_CODE) tests/cpp/*.cpp
	$(BIN)/mypy
	$(BIN)/python tools/check_repository.py

# Fit the complete keyframes of nuScenes scene-0103 with each set of sensors, then score and replay the exported bundle.
NUSCENES ?= $(or $(PERCEPTION_NUSCENES),../shared/data/nuscenes)
DATA := --data $(NUSCENES) --version v1.0-mini

SENSORS ?= fusion lidar camera
overfit: $(INSTALLED)
	set -e; for sensors in $(SENSORS); do run=runs/overfit_$$sensors; rm -rf $$run; \
	$(BIN)/perception train configs/nuscenes/overfit_$$sensors.yaml $(DATA) --split mini_val --out $$run; \
	$(BIN)/perception export $$run --out $$run/bundle; \
	$(BIN)/perception evaluate $$run/bundle $(DATA) --scenes scene-0103:0-4 --out $$run/evaluation; done
	set -e; case "$(SENSORS)" in *fusion*) \
	$(BIN)/perception evaluate runs/overfit_fusion/bundle $(DATA) --scenes scene-0103 --out runs/overfit_fusion/scene; \
	$(BIN)/perception replay $(NUSCENES) --bundle runs/overfit_fusion/bundle --scenes scene-0103 --out runs/overfit_fusion/replay;; \
	esac

# A module carries the demo's simulated base to real sensors: trained on two keyframes of scene-0103, scored on two others.
real: $(INSTALLED)
	rm -rf runs/real
	$(BIN)/perception evaluate runs/demo/run $(DATA) --scenes scene-0103:2-4 --out runs/real/before
	$(BIN)/perception adapt runs/demo/run --add low_rank:real --option rank=4 --slots 'lidar.*,fuse*,trunk.*,heads.*' \
	$(DATA) --split mini_val --scenes scene-0103:0-2 --steps 200 --out runs/real/adapted
	$(BIN)/perception evaluate runs/real/adapted $(DATA) --scenes scene-0103:2-4 --out runs/real/after

# Everything that docs/figures.md records and README quotes, measured on this machine: about an hour on two quiet cores.
figures: $(INSTALLED) demo overfit real install-mmdet3d
	$(BIN)/python tools/figures.py

# Every benchmark on few frames: that it works and prints its figures. Those that need the demo, the C++ library, recorded
# data or mmdet3d's environment say so where these are not there.
bench-quick: $(INSTALLED)
	$(BIN)/python tools/bench.py --quick

# Deliberate defects of the product, which the tests must find.
mutants: $(INSTALLED)
	$(BIN)/python tools/mutants.py

# Everything that is too long for the gate (.ci/run).
check:
	bash .ci/check
