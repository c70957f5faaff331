"""The computation functions: a kind is a file, a class in it with its options, and a line here."""

# kind -> file and class; the files need torch, the names do not
KIND_LOCATIONS = {
    "low_rank": ("weight_delta", "LowRank"),
    "sparse_delta": ("weight_delta", "SparseDelta"),
    "batch_norm": ("channelwise", "BatchNorm"),
    "prompt": ("prompt", "Prompt"),
    "series_adapter": ("adapter", "SeriesAdapter"),
    "parallel_adapter": ("adapter", "ParallelAdapter"),
    "bottleneck": ("adapter", "Bottleneck"),
    "rescale": ("channelwise", "Rescale"),
    "scale_shift": ("channelwise", "ScaleShift"),
    "memory": ("memory", "Memory"),
    "film": ("conditional", "Film"),
    "hypernetwork": ("conditional", "HyperNetwork"),
}
