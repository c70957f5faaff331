"""The bridge to mmdet3d.

`importing.py` imports trained networks; it neither runs foreign code nor needs mmdet3d. `foreign.py` attaches modules
to mmdet3d's detectors. Its infos are a data set, `perception/datasets/infos.py`.
"""
