"""https: an unknown certificate is refused at once, a trusted one is used."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dln.lm.remote.call import Call, ServerUnreachable
from dln.lm.remote.endpoint import endpoint_of
from dln.lm.remote.sender import HttpSender
from remote_scripted_server import ScriptedServer, ok


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make a certificate with")
def test_https_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)

    def read(call: Call, reply: Any) -> int:
        return int(reply["i"])

    with ScriptedServer(lambda asked: ok(asked.body), tls=tls) as server:
        url = server.url.replace("http:", "https:")
        calls = [Call("/completions", {"i": i}) for i in range(20)]
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        sender = HttpSender(endpoint_of("m", [url], key_needed=False))
        with pytest.raises(ServerUnreachable, match="SSL_CERT_FILE"):
            sender.send(calls, read)
        assert sender.traffic().retries == {}
        sender.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        sender = HttpSender(endpoint_of("m", [url], key_needed=False))
        assert sender.send(calls, read) == list(range(20))
        sender.close()
