"""The bridge from mmdet3d: its trained networks come into ours.

`config.py` reads its configurations and `checkpoint.py` its checkpoints, neither of which runs foreign code or needs
mmdet3d; `install.py` imports mmdet3d itself, for who wants to compare with it.
"""
