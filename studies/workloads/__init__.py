"""What is trained: real data, a model, and what a good result looks like.

One file per workload. A workload is written as anybody would write it: an ordinary nn.Module, and tensors of examples.
"""

from studies.workloads.workload import Split, Workload, known, load

__all__ = ["Split", "Workload", "known", "load"]
