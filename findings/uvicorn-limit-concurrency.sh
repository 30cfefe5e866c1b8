#!/usr/bin/env bash
# uvicorn's limit_concurrency counts connections, its only client's own among them.
#
# Versions:  uvicorn 0.54.0, Python 3.11, Linux x86-64.
# Input:     an application that answers at once, served with limit_concurrency=1 and =2; one client that sends one request.
# Expected:  limit_concurrency=1 lets one request be answered at a time.
# Seen:      with 1 that single request is refused with 503, as the connection that it came by is counted; with 2 it is
#            answered, but not while another client keeps an idle connection open.
# So:        the limit is one more than there may be connections, and idle ones use it up: requests at a time are limited in
#            the application.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check uvicorn==0.54.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import http.client
import socket
import sys
import threading
import time

import uvicorn


async def application(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def status_with(limit, idle):
    """Return the status that a client gets while another one, perhaps, has an idle connection."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    config = uvicorn.Config(application, limit_concurrency=limit, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    others = [socket.create_connection(("127.0.0.1", port)) for _ in range(idle)]
    while len(server.server_state.connections) < idle:
        time.sleep(0.01)
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    client.request("GET", "/")
    status = client.getresponse().status
    for each in (client, *others):
        each.close()
    server.should_exit = True
    thread.join()
    return status


seen = {case: status_with(*case) for case in ((1, 0), (2, 0), (2, 1))}
for (limit, idle), status in seen.items():
    print(f"limit_concurrency={limit}, {idle} idle connections: {status}")
sys.exit(0 if seen == {(1, 0): 503, (2, 0): 200, (2, 1): 503} else "the behaviour is another now")
PYTHON
