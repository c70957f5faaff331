"""Graphs in FP16 and INT8. TensorRT 11 takes the precision from the graph, so that is where it is written."""
