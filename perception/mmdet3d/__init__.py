"""The bridge to mmdet3d, in three ways.

Its trained networks become ours: `config.py` reads its configurations and `checkpoint.py` its checkpoints, neither of
which runs foreign code or needs mmdet3d. Its detectors carry our modules: `foreign.py`, `adapt.py`. Our model is one of
its models: `registered.py`, `metric.py`. `install.py` imports mmdet3d itself.
"""
