.PHONY: demo test lint overfit real install-mmdet3d test-mmdet3d

PYTHON ?= python3
BIN := .venv/bin

# The environment, made anew when the dependencies change. tensorrt-rtx compiles engines without a GPU.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[rtx,viewer,dev]'
	touch $@

demo: .venv/installed
	$(BIN)/perception demo

# A process for each core, so torch needs no second thread; a file's tests share what they prepare.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# mmdet3d beside all else, in the same environment; without what its packages ask for, which would be a second OpenCV.
# mmcv's operators are compiled, once per machine: pip's cache keeps the wheel.
.venv/mmdet3d: .venv/installed
	$(BIN)/pip install --quiet --editable '.[rtx,viewer,dev,mmdet3d]'
	$(BIN)/pip install --no-build-isolation --no-deps onedl-mmcv==2.3.6 onedl-mmengine==0.10.12 mmdet==3.3.0 \
	mmdet3d==1.4.0 lyft-dataset-sdk==0.0.8
	touch $@

install-mmdet3d: .venv/mmdet3d

test-mmdet3d: .venv/mmdet3d
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile tests/mmdet3d

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Fit the complete keyframes of nuScenes scene-0103 with each set of sensors, then score and replay the exported bundle.
NUSCENES ?= $(or $(PERCEPTION_NUSCENES),../shared/data/nuscenes)
DATA := --data $(NUSCENES) --version v1.0-mini

overfit: .venv/installed
	set -e; for sensors in fusion lidar camera; do run=runs/overfit_$$sensors; rm -rf $$run; \
	$(BIN)/perception train configs/nuscenes/overfit_$$sensors.yaml $(DATA) --split mini_val --out $$run; \
	$(BIN)/perception export $$run --out $$run/bundle; \
	$(BIN)/perception evaluate $$run/bundle $(DATA) --scenes scene-0103:0-4 --out $$run/evaluation; done
	$(BIN)/perception evaluate runs/overfit_fusion/bundle $(DATA) --scenes scene-0103 --out runs/overfit_fusion/scene
	$(BIN)/perception replay $(NUSCENES) --bundle runs/overfit_fusion/bundle --scenes scene-0103 --out runs/overfit_fusion/replay

# A module carries the demo's simulated base to real sensors: trained on two keyframes of scene-0103, scored on two others.
real: .venv/installed
	rm -rf runs/real
	$(BIN)/perception evaluate runs/demo/run $(DATA) --scenes scene-0103:2-4 --out runs/real/before
	$(BIN)/perception adapt runs/demo/run --add low_rank:real --option rank=4 --slots 'lidar.*,fuse*,trunk.*,heads.*' \
	$(DATA) --split mini_val --scenes scene-0103:0-2 --steps 200 --out runs/real/adapted
	$(BIN)/perception evaluate runs/real/adapted $(DATA) --scenes scene-0103:2-4 --out runs/real/after
