"""Graphs in FP16 and INT8. TensorRT 11 takes the precision from the graph, so that is where it is written.

`graph` finds out where a node stands; `half` makes FP16 of it; `frames`, `calibrate`, `sensitivity` and `quantise` are
the steps to INT8; `lower` is what an export calls.
"""
