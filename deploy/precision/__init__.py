"""Conversion of FP32 graphs to FP16 and INT8. TensorRT 11 takes the precision from the types in the graph.

`graph` finds the part of the network that a node belongs to; `half` converts to FP16; `frames`, `calibrate`,
`sensitivity` and `quantise` are the steps to INT8; `convert.convert` runs them; `measure` measures the tolerances.
"""
