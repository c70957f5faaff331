"""The bridge to mmdet3d.

- Import of trained networks (`importing.py`): `flat_config.py` reads configurations and `checkpoint.py` checkpoints;
  neither runs foreign code or needs mmdet3d.
- Modules on mmdet3d's detectors: `foreign.py`, `adapt.py`.
- Our model registered in mmdet3d: `registered.py`, `metric.py`.
- Our keyframes from mmdet3d's infos: `infos.py`.

`install.py` imports mmdet3d itself.
"""
