"""Running: study files, grids, workloads, training, workers."""
