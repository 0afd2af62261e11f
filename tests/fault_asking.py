"""Asking a fault server by hand, without any client of ours."""

from __future__ import annotations

import http.client
import json
from typing import Any

from fault_language import Language
from fault_server import FaultServer

__all__ = ["CONTEXT", "LANGUAGE", "TARGET", "ask", "completion"]

LANGUAGE = Language()
CONTEXT, TARGET = "Input: two tiles broke\nLabel:", " yes sir no"


def ask(server: FaultServer, path: str = "/v1/completions", body: Any = None, timeout: float = 5.0) -> tuple[int, Any]:
    """Status and JSON, over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, text, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def completion(server: FaultServer, prompt: Any = CONTEXT, **parameters: Any) -> Any:
    status, reply = ask(server, body={"model": "tiny", "prompt": prompt, "max_tokens": 1, **parameters})
    assert status == 200, reply
    return reply
