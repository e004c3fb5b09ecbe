"""A hub on the loopback: what huggingface_hub speaks with the true one, as far as artkv uses it, in memory."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub.constants
import pytest
from typing_extensions import Self

TOKEN = "hf_of_the_owner"


@dataclass
class Repository:
    """private: only the owner's token reads it. commits: the files of each, by name. branches: their commits.

    config: what the hub tells of the model's config.json; None: nothing.
    """

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] | None = None

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        whole = {**self.files(branch), **files}
        content = repr(sorted((name, hashlib.sha256(data).hexdigest()) for name, data in whole.items()))
        sha = hashlib.sha1(f"{branch}{len(self.commits)}{content}".encode()).hexdigest()
        self.commits[sha] = whole
        self.branches[branch] = sha
        return sha

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits.get(self.branches.get(revision, revision), {})


class Hub:
    """repositories: by id. status: answered to everything, if not None. requests: what was asked, in order."""

    def __init__(self) -> None:
        self.repositories = {"Salesforce/blip2-opt-2.7b": Repository(branches={"main": ""})}
        self.blobs: dict[str, bytes] = {}
        self.status: int | None = None
        self.requests: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, code: int, body: Any = b"", **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_POST(self) -> None:
            self.respond()

        do_GET = do_HEAD = do_PUT = do_POST

        def respond(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.split("?")[0]
            is_owner = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if hub.status is not None:
                return self.answer(hub.status, {"error": "as the test wants it"})
            if path.startswith("/lfs/"):
                hub.blobs[path.removeprefix("/lfs/")] = body
                return self.answer(200)
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if self.command == "POST" and not is_owner:
                return self.answer(401, {"error": "Invalid username or password."})
            if path == "/api/repos/create":
                given = json.loads(body)
                name = f"{given.get('organization') or 'user'}/{given['name']}"
                if name.startswith("other/"):
                    return self.answer(403, {"error": "You don't have the rights to create a model there"})
                code = 409 if name in hub.repositories else 200
                hub.repositories.setdefault(
                    name, Repository(given.get("private") or given.get("visibility") == "private")
                ).branches.setdefault("main", "")
                return self.answer(code, {"url": f"{hub.url}/{name}"})
            found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+?)(?:\.git)?(?:/(.+))?", path)
            repository = hub.repositories.get(found[1]) if found else None
            if found is None or repository is None or (repository.private and not is_owner):
                return self.answer(404 if is_owner else 401, {"error": "none"}, X_Error_Code="RepoNotFound")
            return self.of_repository(found[1], repository, found[2] or "", body)

        def of_repository(self, name: str, repository: Repository, rest: str, body: bytes) -> None:
            kind, _, rest = rest.partition("/")
            if kind in ("", "revision"):
                revision = rest or "main"
                sha = repository.branches.get(revision, revision)
                if sha not in repository.commits and revision != "main":
                    return self.answer(404, {"error": "none"}, X_Error_Code="RevisionNotFound")
                siblings = [{"rfilename": n, "size": len(d)} for n, d in repository.files(revision).items()]
                told = {"id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": siblings}
                return self.answer(200, told if repository.config is None else told | {"config": repository.config})
            if kind == "tree":
                files = repository.files(rest or "main").items()
                entries = [
                    {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()} for n, d in files
                ]
                return self.answer(200, entries)
            if kind == "branch":
                if rest in repository.branches:
                    return self.answer(409, {"error": "is there"})
                repository.branches[rest] = repository.branches["main"]
                return self.answer(200, {})
            if kind == "preupload":
                files = json.loads(body)["files"]
                modes = {file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular" for file in files}
                answers = [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]
                return self.answer(200, {"files": answers})
            if kind == "info":  # lfs/objects/batch
                objects = [
                    {
                        "oid": one["oid"],
                        "size": one["size"],
                        "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}},
                    }
                    for one in json.loads(body)["objects"]
                ]
                return self.answer(200, {"objects": objects, "transfer": "basic"})
            if kind == "commit":
                written = {}
                for line in body.decode().splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        written[value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        written[value["path"]] = hub.blobs[value["oid"]]
                sha = repository.commit(rest, written)
                return self.answer(
                    200, {"success": True, "commitOid": sha, "commitUrl": f"{hub.url}/{name}/commit/{sha}"}
                )
            assert kind == "resolve", self.path
            revision, _, file = rest.partition("/")
            sha = repository.branches.get(revision, revision)
            if file not in repository.commits.get(sha, {}):
                return self.answer(404, {"error": "none"}, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
            data = repository.commits[sha][file]
            return self.answer(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=sha)

    return Handler


@contextmanager
def hub_here(monkeypatch: pytest.MonkeyPatch, cache: Any, token: str | None = TOKEN) -> Iterator[Hub]:
    """The hub that huggingface_hub of this process speaks with, with a cache of its own."""
    with Hub() as hub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache) + "-no-token")
        monkeypatch.setenv("HF_TOKEN", token or "")
        yield hub
