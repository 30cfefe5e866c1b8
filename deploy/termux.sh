#!/bin/sh
# Sets splitload up in Termux on an Android phone, and serves it to a desk over the cable. Not tested on a phone.
#
#   sh termux.sh FOLDER [LIBRARY]
#
# FOLDER is a copy of splitload's checkout on the phone (adb push, or git clone). LIBRARY is onnxruntime's C library for
# the phone's processor, libonnxruntime.so out of jni/arm64-v8a of the Android package: then neither numpy nor the
# Python module is needed. Without it Termux's own packages are taken, if they are new enough.
set -eu

folder=${1:?"give the folder with the checkout of splitload: sh termux.sh FOLDER [LIBRARY]"}
library=${2:-}
if [ ! -f "$folder/pyproject.toml" ]; then
    echo "termux.sh: '$folder' holds no checkout of splitload; copy it there first" >&2
    exit 2
fi
if [ -n "$library" ] && [ ! -f "$library" ]; then
    echo "termux.sh: there is no library '$library'; leave it out to take Termux's package" >&2
    exit 2
fi

pkg install -y python
if [ -n "$library" ]; then
    pip install starlette uvicorn segno
    pip install --no-deps "$folder"
    export SPLITLOAD_ORT_LIBRARY="$library"
else
    pkg install -y python-numpy python-onnxruntime
    pip install starlette uvicorn segno
    pip install --no-deps "$folder"
fi

# Android stops what runs in the background unless it is told not to.
if command -v termux-wake-lock >/dev/null; then
    termux-wake-lock
fi

echo "At the desk, with the phone on a cable and USB debugging allowed: splitload profile MODEL --device 'adb:SERIAL#CODE'"
echo "(SERIAL is what 'adb devices' shows, CODE what follows the # below)"
exec splitload serve --http
