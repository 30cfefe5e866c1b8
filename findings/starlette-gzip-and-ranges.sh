#!/usr/bin/env bash
# Starlette answers with one ETag for a file and for its gzip: a download that is resumed by it is joined of both.
#
# Versions:  starlette 1.10.0, httpx 0.28.1, Python 3.11, Linux x86-64.
# Input:     a file of 100,000 bytes by FileResponse behind GZipMiddleware. A client that accepts gzip asks for it, has the
#            first 100 bytes of the answer, and asks for the rest with Range and If-Range, as the ETag allows.
# Expected:  another ETag for the gzip, as RFC 9110 (8.8.3.3) asks of encodings; or no 206 to a range of it.
# Seen:      200 with Content-Encoding gzip, then 206 without an encoding, both with the same ETag that is no weak one. The
#            second part is of the plain file: the two together are neither the file nor its gzip.
# So:        who resumes asks for "Accept-Encoding: identity" and compares a hash in the end.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check starlette==1.10.0 httpx==0.28.1 anyio
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import gzip
import sys
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse
from starlette.routing import Route

path = Path("weights.bin")
path.write_bytes(bytes(range(250)) * 400)


async def served(request):
    return FileResponse(path)


application = Starlette(routes=[Route("/", served)], middleware=[Middleware(GZipMiddleware)])


async def ask(**headers):
    transport = httpx.ASGITransport(app=application)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        async with client.stream("GET", "/", headers=headers) as answer:
            return answer, b"".join([piece async for piece in answer.aiter_raw()])


first, packed = asyncio.run(ask(**{"Accept-Encoding": "gzip"}))
tag = first.headers["etag"]
rest, tail = asyncio.run(ask(**{"Accept-Encoding": "gzip", "Range": "bytes=100-", "If-Range": tag}))
joined = packed[:100] + tail
print("whole:", first.status_code, first.headers.get("content-encoding"), len(packed), "bytes, ETag", tag)
print("rest: ", rest.status_code, rest.headers.get("content-encoding"), len(tail), "bytes, ETag", rest.headers["etag"])
print("joined: the file", joined == path.read_bytes(), "- its gzip", joined == packed)
as_described = (
    (first.status_code, first.headers.get("content-encoding")) == (200, "gzip")
    and gzip.decompress(packed) == path.read_bytes()
    and (rest.status_code, rest.headers.get("content-encoding"), rest.headers["etag"]) == (206, None, tag)
    and not tag.startswith("W/")
    and joined not in (packed, path.read_bytes())
)
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON
