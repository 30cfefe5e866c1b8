"""What each command of the command line does; with `splitload.cli` the only place that joins all parts."""

AGENTS = ("q-learning", "sarsa", "exact", "annealing", "uniform", "random")
LEARNERS = ("q-learning", "sarsa")
OBJECTIVES = ("balance", "ttfo")
ARMS = ("stock", "tuned", "ort-format", "torch", "torch-mmap", "openvino", "ncnn", "splitload")
