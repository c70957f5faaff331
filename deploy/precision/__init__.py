"""Graphs in FP16 and INT8. TensorRT 11 takes the precision from the graph's types.

`graph` finds the part of the network that a node is in; `half` converts to FP16; `frames`, `calibrate`, `sensitivity`
and `quantise` are the steps to INT8; `convert.lower` is what an export calls.
"""
