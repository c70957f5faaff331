"""Conversion of FP32 graphs to FP16 and INT8. TensorRT 11 takes the precision from the types in the graph.

`graph` finds the part of the network that a node belongs to; `calibrate` and `quantise` are the steps to INT8;
`convert` chooses its blocks, converts to FP16 and runs all; `measure` measures the tolerances.
"""
