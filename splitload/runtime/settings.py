"""What the sessions of either engine are told, in onnxruntime's words."""

from __future__ import annotations

SPIN_US = 1000
SPINNING = {"session.intra_op.spin_duration_us": str(SPIN_US), "session.force_spinning_stop": "1"}
PLAIN = {"session.disable_prepacking": "1"}
MAPPED = {"session.use_memory_mapped_ort_model": "1", "session.use_ort_model_bytes_for_initializers": "1"}
EXACT = {  # of the arena of all stages: regions as large as what is asked for, doubled ones would hold twice as much
    "max_mem": 0,
    "arena_extend_strategy": 1,
    "initial_chunk_size_bytes": -1,
    "max_dead_bytes_per_chunk": -1,
}
ENABLE_ALL, DISABLE_ALL = 99, 0  # of GraphOptimizationLevel
FATAL = 4  # the least severity that is logged: what goes wrong is raised
ENVIRONMENT = FATAL, b"splitload"  # what it logs, and under which name
SHARES = {"session.use_env_allocators": "1"}  # of a session that takes its memory there
SHRINKS = {"memory.enable_memory_arena_shrinkage": "cpu:0"}  # of a run that gives back what is free


def file_entries(graph: str, *, prepack: bool, mapped: bool) -> dict[str, str]:
    """Return the configuration entries that say how a stage's graph file is read.

    Args:
        graph: The .onnx or .ort file.
        prepack: Whether to rearrange weights for faster inference.
        mapped: Whether the weights of an .ort file stay mapped, or are read into memory.
    """
    return ({} if prepack else PLAIN) | (MAPPED if mapped and graph.endswith(".ort") else {})
