#!/usr/bin/env bash
# Importing onnxruntime writes a device id and a database into the user's home folder.
#
# Versions:  onnxruntime 1.32.0 and 1.28.0, Python 3.11, Linux x86-64.
# Input:     `import onnxruntime`, and nothing else, with HOME an empty folder; then the same with
#            onnxruntime.disable_telemetry_events() after the import, and with ORT_DISABLE_TELEMETRY=1 before it.
# Expected:  no file: no session was made, and nothing was asked for.
# Seen:      1.32.0 leaves files in .cache/Microsoft below HOME, also where events are disabled after the import; with the
#            environment variable there are none. 1.28.0 writes none.
# So:        programs that must leave nothing behind, or run where HOME is read-only or counted, set the variable before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
files_of() {  # VERSION CODE [VARIABLE]: how many files it leaves in an empty home folder
    rm -rf "$folder/home" && mkdir "$folder/home"
    env ${3:+"$3"} HOME="$folder/home" XDG_CACHE_HOME= "$folder/$1/bin/python" -c "$2" > /dev/null 2>&1
    find "$folder/home" -type f | sed "s|$folder/home|HOME|" | sort > "$folder/found"
    wc -l < "$folder/found"
}
for version in 1.32.0 1.28.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==$version"
done
import="import onnxruntime"
plain=$(files_of 1.32.0 "$import"); cat "$folder/found"
late=$(files_of 1.32.0 "$import; onnxruntime.disable_telemetry_events()")
early=$(files_of 1.32.0 "$import" ORT_DISABLE_TELEMETRY=1)
older=$(files_of 1.28.0 "$import")
echo "1.32.0: $plain files; disabled after the import: $late; with the variable: $early; 1.28.0: $older"
[ "$plain" -gt 0 ] && [ "$late" -gt 0 ] && [ "$early" -eq 0 ] && [ "$older" -eq 0 ] || { echo "the behaviour is another now"; exit 1; }
