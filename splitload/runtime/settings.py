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
ENABLE_ALL, ENABLE_BASIC, DISABLE_ALL = 99, 1, 0  # of GraphOptimizationLevel
FATAL = 4  # the least severity that is logged: what goes wrong is raised
ENVIRONMENT = FATAL, b"splitload"  # what it logs, and under which name
SHARES = {"session.use_env_allocators": "1"}  # of a session that takes its memory there
SHRINKS = {"memory.enable_memory_arena_shrinkage": "cpu:0"}  # of a run that gives back what is free


EXTERNAL_FROM_BYTES = 1024  # smaller weights stay inside an optimised graph's file


def written_entries(target: str) -> dict[str, str]:
    """Return the configuration entries that say how an optimised graph is written.

    Args:
        target: The .ort file; or the .onnx file, then large weights go to the .bin file of the same name.
    """
    if target.endswith(".ort"):
        return {"session.save_model_format": "ORT"}
    stem = target.replace("\\", "/").rpartition("/")[2].removesuffix(".onnx")
    return {
        "session.optimized_model_external_initializers_file_name": f"{stem}.bin",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(EXTERNAL_FROM_BYTES),
    }


def file_entries(graph: str, *, prepack: bool, mapped: bool) -> dict[str, str]:
    """Return the configuration entries that say how a stage's graph file is read.

    Args:
        graph: The .onnx or .ort file.
        prepack: Whether to rearrange weights for faster inference.
        mapped: Whether the weights of an .ort file stay mapped, or are read into memory.
    """
    return ({} if prepack else PLAIN) | (MAPPED if mapped and graph.endswith(".ort") else {})
