"""The bridge to mmdet3d.

- Import of trained networks (`importing.py`): `checkpoint.py` reads configurations and checkpoints; it
  neither runs foreign code nor needs mmdet3d.
- Modules on mmdet3d's detectors: `foreign.py`; its infos are a data set, `perception/datasets/infos.py`.

`install.py` imports mmdet3d itself.
"""
