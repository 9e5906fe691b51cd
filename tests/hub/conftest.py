"""A small hub on the loopback that speaks as much of the Hugging Face hub's protocol as is used.

`LocalHub` keeps repositories in memory. What uses it must run in a process of its own, started by
`LocalHub.run`: huggingface_hub reads its settings when it is imported. In that process every
connection to another host is an error (`GUARD`).
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_local"
GUARD = """
import socket

_connect, _lookup = socket.socket.connect, socket.getaddrinfo

def _local(host):
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise AssertionError(f"a connection to {host} was tried")

def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _local(address[0])
    return _connect(self, address)

def getaddrinfo(host, *rest, **more):
    _local(host.decode() if isinstance(host, bytes) else host)
    return _lookup(host, *rest, **more)

socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""


@dataclass
class Repo:
    """A repository: the files of its newest commit, which commit that is, and all messages."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    gated: bool = False
    """Whether nobody has accepted its terms: it is seen, and its files are not given."""

    @property
    def sha(self) -> str:
        known = repr(sorted((k, hashlib.sha256(v).hexdigest()) for k, v in self.files.items()))
        return hashlib.sha1(f"{known}{len(self.messages)}".encode()).hexdigest()


class LocalHub:
    """The server; ``models`` and ``datasets`` by id."""

    def __init__(self) -> None:
        self.models: dict[str, Repo] = {}
        self.datasets: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.unknown: list[str] = []
        """Requests that it has no answer for."""
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add_model(self, name: str, folder: Path, private: bool = False) -> None:
        """Put the files of a folder into a repository."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.models[name] = Repo(private, files)

    def add_dataset(self, name: str, files: Mapping[str, bytes]) -> None:
        self.datasets[name] = Repo(files=dict(files))

    def run(
        self, folder: Path, code: str, *arguments: str, token: str | None = TOKEN, **more: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run Python code in a process that knows this hub and reaches nothing else."""
        gone = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN")
        environment = {key: value for key, value in os.environ.items() if key not in gone}
        environment |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "XDG_CACHE_HOME": str(folder / "cache"),
            **({} if token is None else {"HF_TOKEN": token}),
            **more,
        }
        return subprocess.run(
            [sys.executable, "-c", GUARD + code, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def paretune(
        self, folder: Path, *arguments: str, token: str | None = TOKEN, **more: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run the command line so."""
        code = "\nfrom paretune.cli import main\nmain()\n"
        return self.run(folder, code, *arguments, token=token, **more)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: LocalHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        hub, length = self.server_hub, int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = unquote(urlsplit(self.path).path)
        for allowed, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found is not None and method in allowed:
                answer(self, hub, body, **found.groupdict())
                return
        hub.unknown.append(f"{method} {self.path}")
        self._send(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})

    def _send(
        self, status: int, value: Any = None, headers: Mapping[str, str] | None = None
    ) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", **(headers or {})}
        for name, text in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _repo(self, kind: str, name: str) -> Repo | None:
        """The repository, if it is there and the caller may see it; else the answer is sent."""
        found: Repo | None = getattr(self.server_hub, kind).get(name)
        if found is not None and (not found.private or self._known()):
            return found
        error = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        self._send(404 if self._known() else 401, {"error": "Repository not found"}, error)
        return None

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # ---------------------------------------------------------------- what is answered

    def create(self, hub: LocalHub, body: bytes) -> None:
        if not self._known():
            self._send(401, {"error": "Invalid username or password."})
            return
        value = json.loads(body)
        name = f"{value.get('organization')}/{value['name']}"
        if value.get("organization") != "me":
            self._send(403, {"error": f"You don't have the rights to create {name}"})
            return
        repos = hub.datasets if value.get("type") == "dataset" else hub.models
        if name in repos:
            self._send(409, {"error": "You already created this repo", "url": name})
            return
        private = value.get("private") or value.get("visibility") == "private"
        repos[name] = Repo(bool(private), {".gitattributes": b"* text\n"})
        self._send(200, {"url": f"{hub.endpoint}/{name}", "name": name, "id": name})

    def info(
        self, hub: LocalHub, body: bytes, kind: str, name: str, revision: str | None = None
    ) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        if revision not in (None, "main", repo.sha):
            self._send(404, {"error": "revision"}, {"X-Error-Code": "RevisionNotFound"})
            return
        self._send(
            200,
            {
                "_id": "0" * 24,
                "id": name,
                "modelId": name,
                "sha": repo.sha,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "lastModified": "2026-01-01T00:00:00.000Z",
                "createdAt": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": path} for path in sorted(repo.files)],
            },
        )

    def tree(
        self,
        hub: LocalHub,
        body: bytes,
        kind: str,
        name: str,
        revision: str,
        path: str | None = None,
    ) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        inside = [p for p in sorted(repo.files) if not path or p.startswith(f"{path}/")]
        if path and not inside:
            self._send(404, {"error": "entry"}, {"X-Error-Code": "EntryNotFound"})
            return
        found = [_entry(p, repo.files[p]) for p in inside]
        if "recursive=true" not in urlsplit(self.path).query.lower():
            depth = path.count("/") + 1 if path else 0
            folders = {"/".join(p.split("/")[: depth + 1]) for p in inside if p.count("/") > depth}
            found = [e for e in found if e["path"].count("/") == depth]
            found += [
                {"type": "directory", "path": p, "oid": _git(p.encode()), "size": 0}
                for p in sorted(folders)
            ]
        self._send(200, found)

    def paths(self, hub: LocalHub, body: bytes, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name)
        if repo is not None:
            asked = json.loads(body)["paths"] if body.startswith(b"{") else _form(body, "paths")
            found = [_entry(path, repo.files[path]) for path in asked if path in repo.files]
            folders = {f for p in repo.files for f in asked if p.startswith(f"{f}/")}
            found += [
                {"type": "directory", "path": p, "oid": _git(b""), "size": 0} for p in folders
            ]
            self._send(200, found)

    def preupload(self, hub: LocalHub, body: bytes, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs"
                if each["path"].endswith((".safetensors", ".png"))
                else "regular",
                "shouldIgnore": False,
                "oid": _entry(each["path"], old)["oid"]
                if (old := repo.files.get(each["path"]))
                else None,
            }
            for each in json.loads(body)["files"]
        ]
        self._send(200, {"files": files})

    def batch(self, hub: LocalHub, body: bytes, name: str) -> None:
        objects = []
        for each in json.loads(body)["objects"]:
            known = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in hub.large:
                href = f"{hub.endpoint}/large/{each['oid']}"
                known["actions"] = {"upload": {"href": href}}
            objects.append(known)
        self._send(200, {"transfer": "basic", "objects": objects})

    def put(self, hub: LocalHub, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        hub.large[oid] = body
        self._send(200, {})

    def validate(self, hub: LocalHub, body: bytes) -> None:
        content = json.loads(body)["content"]
        valid = content.startswith("---\n") and "\n---\n" in content[4:]
        errors = [] if valid else [{"message": "no header"}]
        self._send(200 if valid else 400, {"errors": errors, "warnings": []})

    def commit(self, hub: LocalHub, body: bytes, kind: str, name: str, revision: str) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        files, message = dict(repo.files), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = hub.large[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            else:
                raise AssertionError(item["key"])
        repo.files = files
        repo.messages.append(message)
        url = f"{hub.endpoint}/{name}/commit/{repo.sha}"
        self._send(200, {"commitUrl": url, "commitOid": repo.sha, "success": True})

    def resolve(
        self,
        hub: LocalHub,
        body: bytes,
        name: str,
        path: str,
        revision: str,
        kind: str | None = None,
    ) -> None:
        repo = self._repo("datasets" if kind else "models", name)
        if repo is None:
            return
        if repo.gated:
            status = 403 if self._known() else 401
            self._send(status, {"error": "restricted"}, {"X-Error-Code": "GatedRepo"})
            return
        headers = {"X-Repo-Commit": repo.sha}
        if path not in repo.files:
            error = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send(404, {"error": "Entry not found"}, headers | error)
            return
        content, status = repo.files[path], 200
        headers["ETag"] = f'"{_entry(path, content)["oid"]}"'
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        self._send(status, content, headers | {"Content-Type": "application/octet-stream"})


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git(content)}
    if path.endswith((".safetensors", ".png")):
        entry["oid"] = digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
    return entry


def _form(body: bytes, key: str) -> list[str]:
    return parse_qs(body.decode()).get(key, [])


_NAME = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_NAME}"
_ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("GET", "HEAD"), rf"{_API}(?:/revision/(?P<revision>[^/]+))?", _Handler.info),
    (("GET",), rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _Handler.tree),
    (("POST",), rf"{_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths),
    (("POST",), rf"{_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (("POST",), rf"{_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (("POST",), rf"/(?:datasets/)?{_NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    (("PUT",), "/large/(?P<oid>[0-9a-f]+)", _Handler.put),
    (
        ("GET", "HEAD"),
        rf"/(?:(?P<kind>datasets)/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        _Handler.resolve,
    ),
]


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """A hub without a repository; at the end, nothing was asked that it does not know."""
    made = LocalHub()
    yield made
    made.close()
    assert made.unknown == []
