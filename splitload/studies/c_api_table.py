"""The order of onnxruntime's C functions, from a header: `python -m splitload.studies.c_api_table onnxruntime_c_api.h`.

Prints `splitload/runtime/capi/table.py`. Headers come with onnxruntime's releases, and with the packages of
distributions (Debian's libonnxruntime-dev).
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from splitload.base.errors import UsageError
from splitload.studies.study import errors_in_one_line

HEAD = '''"""The functions of onnxruntime's C API, in the order in which its structure `OrtApi` holds them.

Later versions add to its end alone. Made by `python -m splitload.studies.c_api_table`.
"""

API_VERSION = {version}
"""The version that the order is of; libraries of this one and of all later ones have it."""

_NAMES = """
{names}
"""
FUNCTIONS = _NAMES.split()
'''
_MEMBER = re.compile(r"ORT_API2_STATUS\(\s*(\w+)|ORT_CLASS_RELEASE\(\s*(\w+)|\(\s*ORT_API_CALL\s*\*\s*(\w+)\s*\)")


def functions(header: str) -> list[str]:
    """Return the names of the members of `OrtApi`, in order.

    Raises:
        UsageError: If the text is no such header.
    """
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", header, flags=re.DOTALL)
    found = re.search(r"\bstruct OrtApi \{(.*?)\n\};", text, re.DOTALL)
    if found is None:
        raise UsageError("that is no header of onnxruntime's C API: it has no 'struct OrtApi'")
    members = _MEMBER.findall(found[1])
    return [f"Release{released}" if released else plain or other for plain, released, other in members]


def version(header: str) -> int:
    """Return the version of the API that a header declares.

    Raises:
        UsageError: If it declares none.
    """
    found = re.search(r"#define ORT_API_VERSION (\d+)", header)
    if found is None:
        raise UsageError("that is no header of onnxruntime's C API: it has no ORT_API_VERSION")
    return int(found[1])


def table(header: str) -> str:
    """Return the text of the module that holds the order."""
    names = textwrap.fill(" ".join(functions(header)), 118, break_long_words=False)
    return HEAD.format(version=version(header), names=names)


@errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Print the module that holds the order of the functions."""
    parser = argparse.ArgumentParser(prog="python -m splitload.studies.c_api_table", description=__doc__)
    parser.add_argument("header", type=Path, metavar="HEADER", help="onnxruntime_c_api.h")
    try:
        header = parser.parse_args(argv).header.read_text()
    except OSError as error:
        raise UsageError(f"the header cannot be read: {error.strerror or error}") from error
    sys.stdout.write(table(header))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
