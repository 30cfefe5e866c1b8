#!/usr/bin/env bash
# onnxruntime that is imported on a thread asks the system fifty times as often for memory as on the main thread.
#
# Versions:  onnxruntime 1.32.0, numpy 2.4.6, Python 3.11, glibc 2.36, Linux x86-64; counted with strace, which must be there.
# Input:     `import onnxruntime` on the main thread, and on another one, with nothing else going on; numpy is imported before.
# Expected:  some calls of mprotect in either case, as libraries are opened and heaps grow: an import on a thread is a usual way
#            to have it done beside something else.
# Seen:      32 calls on the main thread and 1,814 on the other. The import makes seven megabytes of small blocks (the schemas of
#            operators). glibc's heap of the main thread grows by 128 KiB and more at a time; those of other threads grow by just
#            the page that is needed, with a call for each, and each call holds up all threads that touch new memory.
# So:        whoever has it imported beside other work loses a part of what that is meant to win, unless the heap of that thread
#            has grown before.
set -euo pipefail
command -v strace > /dev/null || { echo "this needs strace" >&2; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 onnxruntime==1.32.0
cd "$folder"
cat > program.py <<'PYTHON'
import sys
import threading

import numpy

if sys.argv[1] == "main":
    import onnxruntime
else:
    thread = threading.Thread(target=__import__, args=("onnxruntime",))
    thread.start()
    thread.join()
PYTHON
for where in main another; do
    ORT_DISABLE_TELEMETRY=1 strace -f -e trace=mprotect -o "$where" venv/bin/python program.py "$where"
    echo "onnxruntime imported on $where thread: $(grep -c 'mprotect(' "$where") calls of mprotect"
done
[ "$(grep -c 'mprotect(' another)" -gt $((10 * $(grep -c 'mprotect(' main))) ] || { echo "the behaviour is another now" >&2; exit 1; }
