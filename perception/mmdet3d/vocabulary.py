"""The names of nuScenes, which mmdet3d's data and checkpoints for it use."""

from __future__ import annotations

from perception.taxonomy import load_taxonomy

NUSCENES = load_taxonomy("nuscenes")
CLASSES, ATTRIBUTES = NUSCENES.class_names, NUSCENES.attributes
