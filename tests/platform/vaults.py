"""A Vault for tests: the transit engine's HTTP API, as far as key-service speaks it.

Requests, answers and errors have the shapes of https://developer.hashicorp.com/vault/api-docs/secret/transit.
"""

import base64
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class TransitVault:
    """One transit key, named "nexus", with versions."""

    def __init__(self) -> None:
        self.token = "hvs.test"
        self.versions = [AESGCM.generate_key(256)]
        self.sealed = False
        self.asked: list[str] = []
        vault = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _answer(self, body: dict[str, str]) -> None:
                status, answer = vault.handle(self.path, self.headers.get("X-Vault-Token"), body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def rotate(self) -> None:
        self.versions.append(AESGCM.generate_key(256))

    def handle(self, path: str, token: str | None, body: dict[str, str]) -> tuple[int, dict[str, Any]]:
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if token != self.token:
            return 403, {"errors": ["permission denied"]}
        operation = path.removeprefix("/v1/transit/").partition("/")[0]
        self.asked.append(operation)
        if operation == "keys":
            return 200, {"data": {"name": "nexus", "type": "aes256-gcm96", "latest_version": len(self.versions)}}
        try:
            data = {"encrypt": self._encrypt, "decrypt": self._decrypt, "rewrap": self._rewrap}[operation](body)
        except (ValueError, InvalidTag):
            return 400, {"errors": ["invalid ciphertext: unable to decrypt"]}
        return 200, {"request_id": "", "lease_id": "", "renewable": False, "lease_duration": 0, "data": data}

    def _encrypt(self, body: dict[str, str]) -> dict[str, Any]:
        nonce, latest = os.urandom(12), len(self.versions)
        sealed = nonce + AESGCM(self.versions[-1]).encrypt(nonce, base64.b64decode(body["plaintext"]), None)
        return {"ciphertext": f"vault:v{latest}:{base64.b64encode(sealed).decode()}", "key_version": latest}

    def _decrypt(self, body: dict[str, str]) -> dict[str, Any]:
        found = re.fullmatch(r"vault:v(\d+):(.+)", body["ciphertext"])
        if found is None or int(found[1]) > len(self.versions):
            raise ValueError(body["ciphertext"])
        sealed = base64.b64decode(found[2])
        plaintext = AESGCM(self.versions[int(found[1]) - 1]).decrypt(sealed[:12], sealed[12:], None)
        return {"plaintext": base64.b64encode(plaintext).decode()}

    def _rewrap(self, body: dict[str, str]) -> dict[str, Any]:
        return self._encrypt(self._decrypt(body))
