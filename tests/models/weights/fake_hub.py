"""A stand-in for the Hugging Face Hub: a local HTTP server that speaks as much of its protocol as huggingface_hub asks
for to download models. It counts the requests, and can be slow."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = "owner/tiny"


class FakeHub:
    """`hub.commit(folder, "main")` publishes a folder as a commit of REPOSITORY that the names point to."""

    def __init__(self) -> None:
        self.commits: dict[str, Path] = {}
        self.names: dict[str, str] = {}
        self.asked: Counter = Counter()  # (method, file or "api") -> requests
        self.seconds = 0.0  # that each file's content takes
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def commit(self, folder: Path, *names: str) -> str:
        commit = hashlib.sha1(str(folder).encode()).hexdigest()
        self.commits[commit] = folder
        self.names |= dict.fromkeys((*names, commit), commit)
        return commit

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if match := re.fullmatch(rf"/api/models/{REPOSITORY}/(revision|tree)/(\w+)", path):
            self.asked[request.command, "api"] += 1
            commit = self.names.get(match[2])
            if commit is None:
                return self._send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
            files = _files(self.commits[commit])
            siblings = [{"rfilename": name} for name in files]
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
                for name, data in files.items()
            ]
            about = (
                {"id": REPOSITORY, "sha": commit, "siblings": siblings} if match[1] == "revision" else tree
            )
            return self._send(request, 200, json.dumps(about).encode(), {"Content-Type": "application/json"})
        if match := re.fullmatch(rf"/{REPOSITORY}/resolve/(\w+)/(.+)", path):
            self.asked[request.command, match[2]] += 1
            commit = self.names[match[1]]
            data = _files(self.commits[commit]).get(match[2])
            if data is not None:
                if request.command == "GET" and match[2].endswith(".safetensors"):
                    time.sleep(self.seconds)
                return self._send(request, 200, data, {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": commit})
        return self._send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})

    def _send(self, request: BaseHTTPRequestHandler, code: int, data: bytes, headers: dict[str, str]) -> None:
        request.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data)


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextlib.contextmanager
def asked_of(endpoint: str, cache: str) -> Iterator[None]:
    """huggingface_hub asks that server, and keeps what it gets in `cache`."""
    from pgdpo.models.weights import hub

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", cache)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setattr(hub, "_commits", {})
        hub._download.cache_clear()
        yield
        hub._download.cache_clear()
