"""Memory of the runtime's in the system's large pages: a first answer touches some thousand small ones, one fault each.

Linux gives large pages to memory that asks for them, where its setting is `madvise` or `always`; elsewhere, and where
the setting is `never`, all of this changes nothing.
"""

from __future__ import annotations

import sys

PAGE_BYTES = 2 << 20  # a large page of most processors; where it is another one, pages are large in places
_ADVICE = 14  # MADV_HUGEPAGE
_BLOCK_BYTES = 120_000  # just what malloc still takes from its heap: from 128 KiB on it asks the system
_HEAP_BYTES = 8 << 20  # what the environment takes, 7 MB with onnxruntime 1.32, and large pages to hold it
_IS_LINUX = sys.platform == "linux"

if _IS_LINUX:
    from splitload.runtime.capi.raw import Address, Int, Size, function, place

    _allocate = function(place("PyMem_RawMalloc"), Address, Size, keeps_lock=True)
    _free = function(place("PyMem_RawFree"), None, Address, keeps_lock=True)
    _advise = function(place("madvise"), Int, Address, Size, Int, keeps_lock=True)


def in_large_pages(begin: int, end: int) -> None:
    """Have memory that nobody has touched yet come in large pages, as far as it holds whole ones.

    Args:
        begin: The address of its first byte.
        end: The address behind its last one.
    """
    begin, end = -(-begin // PAGE_BYTES) * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES
    if _IS_LINUX and begin < end:
        _advise(begin, end - begin, _ADVICE)  # a system that has none says so, which changes nothing


def widen_heap() -> None:
    """Have the heap of this thread grow by what the environment takes, at once and in large pages.

    glibc gives each thread a heap of its own, which grows by a small page and a call of the system at a time: two
    thousand calls for the environment, each of which holds up every other thread that touches new memory.
    """
    if not _IS_LINUX:
        return
    blocks = [block for _ in range(_HEAP_BYTES // _BLOCK_BYTES) if (block := _allocate(_BLOCK_BYTES))]
    if blocks and (length := max(blocks) + _BLOCK_BYTES - min(blocks)) <= 2 * _HEAP_BYTES:  # they lie together
        begin = min(blocks) // PAGE_BYTES * PAGE_BYTES  # a heap begins there, and its first block a little later
        in_large_pages(begin, begin + length)
    for block in blocks:
        _free(block)
