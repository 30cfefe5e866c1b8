"""The description of the service for programs (OpenAPI 3.1): every path, what it takes and how it may answer."""

from __future__ import annotations

from typing import Any

VERSION = 1  # of the paths, which begin with it
PORT = 8750  # where a device listens, unless it is told another one
MOST_FILES = 4096  # of an order
MOST_COUNT = (1 << 53) - 1  # that every reader of JSON takes as it is
_HASH = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_NUMBER = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": MOST_COUNT}
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_REFUSALS = {
    400: "the request is not as described here",
    401: "the token is missing or wrong",
    404: "there is no such order, file or path",
    408: "the body does not come",
    409: "it does not fit what is there",
    413: "the body is too large",
    429: "too many requests, or too many wrong tokens; see Retry-After",
    500: "the service failed, and goes on",
    507: "there is no room on the disk, or in the cache",
}
_FILE = {
    "type": "object",
    "required": ["name", "bytes", "sha256"],
    "additionalProperties": False,
    "properties": {"name": {"type": "string", "minLength": 1}, "bytes": _COUNT, "sha256": _HASH},
}
_ORDER = {
    "type": "object",
    "required": ["files", "job", "cold"],
    "additionalProperties": False,
    "properties": {
        "files": {"type": "array", "items": _FILE, "maxItems": MOST_FILES},
        "job": {"type": ["object", "null"]},
        "cold": {"type": "boolean"},
    },
}
_PIECES = {
    "type": "array",
    "maxItems": MOST_FILES,
    "items": {"type": "array", "prefixItems": [_HASH, _COUNT, _COUNT], "minItems": 3, "maxItems": 3},
}


def description() -> dict[str, Any]:
    """Return the description, as JSON values."""
    number, sha256 = _parameter("number", _NUMBER), _parameter("sha256", _HASH)
    start = {**_parameter("start", _COUNT), "in": "query"}
    seen = {**_parameter("seen", _COUNT), "in": "query", "required": False}
    placed = {"type": "object", "required": ["state", "ahead", "missing"]}
    there = {"type": "object", "required": ["there"], "properties": {"there": _COUNT}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "splitload serve", "version": str(VERSION)},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
        "paths": {
            "/v1/device": {"get": _does("Say what the device is, and how it is now.", _json({"type": "object"}))},
            "/v1/orders/{number}": {
                "put": _does(
                    "Place an order, or go on with it; tell what is missing of its files.",
                    _json(placed),
                    number,
                    body=_json(_ORDER),
                ),
                "delete": _does("End an order.", _json({"type": "object"}), number),
            },
            "/v1/orders/{number}/events": {
                "get": _does(
                    "Stream what happens to an order, a line of JSON each, until it is done.",
                    {"application/x-ndjson": {"schema": {"type": "string"}}},
                    number,
                    seen,
                )
            },
            "/v1/orders/{number}/files/{name}": {
                "get": _does(
                    "Give a file that a job has written.",
                    _octets(),
                    number,
                    _parameter("name", {"type": "string", "minLength": 1}),
                )
            },
            "/v1/files/{sha256}": {
                "put": _does(
                    "Append a piece to a file that an order waits for.", _json(there), sha256, start, body=_octets()
                )
            },
            "/v1/files/{sha256}/copies": {
                "post": _does(
                    "Append pieces of files that are here already: SHA-256, first byte, how many.",
                    _json(there),
                    sha256,
                    start,
                    body=_json(_PIECES),
                )
            },
            "/openapi.json": {"get": _does("Give this description.", _json({"type": "object"}))},
        },
    }  # fmt: skip


def _does(text: str, answer: dict[str, Any], *parameters: dict[str, Any], body: Any = None) -> dict[str, Any]:
    refusals = {str(code): {"description": why, "content": _json(_ERROR)} for code, why in _REFUSALS.items()}
    made: dict[str, Any] = {
        "summary": text,
        "parameters": list(parameters),
        "responses": {"200": {"description": "it did", "content": answer}, **refusals},
    }
    if body is not None:
        made["requestBody"] = {"required": True, "content": body}
    return made


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _octets() -> dict[str, Any]:
    return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
