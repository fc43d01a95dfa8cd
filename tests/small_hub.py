"""A stand-in of the hub in this process: repositories with branches, as huggingface_hub reads and writes them."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_someone"


@dataclass
class SmallHub:
    """What the hub knows: the files of every branch, of every commit, and what it was asked."""

    branches: dict[str, dict[str, str]] = field(default_factory=dict)  # by repository and name: a commit
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by name: files by path
    private: dict[str, bool | None] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    requests: list[str] = field(default_factory=list)
    address: str = ""

    def commit(self, repository: str, branch: str, files: dict[str, bytes]) -> str:
        content = json.dumps([repository, branch, len(self.commits), sorted(files)])
        name = hashlib.sha1(content.encode()).hexdigest()
        self.commits[name] = files
        self.branches[repository][branch] = name
        return name

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[repository][revision]]

    def environment(self, home) -> dict[str, str]:
        """What points huggingface_hub here, without a token."""
        return {"HF_ENDPOINT": self.address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip


@contextmanager
def small_hub():
    hub = SmallHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: SmallHub

    def do_GET(self):
        self._route()

    def do_HEAD(self):
        self._route()

    def do_POST(self):
        self._route()

    def do_PUT(self):
        self._route()

    def log_message(self, *args):
        pass

    def _route(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        for method, pattern, answer in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                words = [unquote(word) for word in found.groups()]
                if self.command in ("POST", "PUT") and "large" not in path and not self._may_write(words):
                    return
                getattr(self, answer)(body, *words)
                return
        self._send(404, {"error": f"{self.command} {path} is not known"})

    def _may_write(self, words):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid credentials in Authorization header"})
            return False
        if words and words[0].startswith("stranger/"):
            self._send(403, {"error": "You don't have the rights"})
            return False
        return True

    def _create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self._may_write([name]):
            return
        if name in self.hub.branches:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"})
            return
        self.hub.branches[name], self.hub.private[name] = {}, asked.get("private", asked.get("visibility"))
        self.hub.commit(name, "main", {".gitattributes": b""})
        self._send(200, {"url": f"{self.hub.address}/{name}", "name": name})

    def _branch(self, body, name, branch):
        if branch in self.hub.branches[name]:
            self._send(409, {"error": "Reference already exists"})
            return
        self.hub.branches[name][branch] = self.hub.branches[name]["main"]
        self._send(200, {})

    def _validate(self, body):
        license = yaml.safe_load(json.loads(body)["content"].split("---\n")[1]).get("license", "other")
        known = license in ("mit", "other")
        errors = [] if known else [{"message": f"license {license!r} is not known"}]
        self._send(200 if known else 400, {"errors": errors, "warnings": []})

    def _preupload(self, body, name, revision):
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
             "shouldIgnore": False, "oid": None}
            for f in json.loads(body)["files"]
        ]  # fmt: skip
        self._send(200, {"files": modes})

    def _batch(self, body, name):
        wanted = json.loads(body)["objects"]
        objects = [{**one, "actions": {"upload": {"href": f"{self.hub.address}/large/{one['oid']}"}}} for one in wanted]
        self._send(200, {"transfer": "basic", "objects": objects})

    def _large(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self._send(200, {})

    def _commit(self, body, name, revision):
        if revision not in self.hub.branches[name]:
            self._send(404, {"error": "Revision Not Found"}, {"X-Error-Code": "RevisionNotFound"})
            return
        files = dict(self.hub.files(name, revision))
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = self.hub.commit(name, revision, files)
        url = f"{self.hub.address}/{name}/commit/{commit}"
        self._send(200, {"commitUrl": url, "commitOid": commit, "success": True})

    def _commit_of(self, name, revision):
        """The commit of a revision; None, with an answer that says so, if there is none."""
        if name not in self.hub.branches:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        commit = self.hub.branches[name].get(revision, revision)
        if commit not in self.hub.commits:
            self._send(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def _info(self, body, name, revision="main"):
        commit = self._commit_of(name, revision)
        if commit is not None:
            siblings = [{"rfilename": path} for path in self.hub.commits[commit]]
            self._send(200, {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False})

    def _tree(self, body, name, revision):
        commit = self._commit_of(name, revision)
        if commit is not None:
            files = self.hub.commits[commit].items()
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": _etag(content)} for path, content in files
            ]
            self._send(200, entries, {"X-Repo-Commit": commit})

    def _resolve(self, body, name, revision, path):
        commit = self._commit_of(name, revision)
        if commit is None:
            return
        content = self.hub.commits[commit].get(path)
        if content is None:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        self._send(200, content, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit})

    def _send(self, status, content, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


NAME = r"([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", "_create"),
    ("POST", "/api/validate-yaml", "_validate"),
    ("POST", f"/api/models/{NAME}/branch/(.+)", "_branch"),
    ("POST", f"/api/models/{NAME}/preupload/(.+)", "_preupload"),
    ("POST", f"/api/models/{NAME}/commit/(.+)", "_commit"),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", "_batch"),
    ("PUT", "/large/(.+)", "_large"),
    ("GET", f"/api/models/{NAME}/revision/([^/]+)", "_info"),
    ("GET", f"/api/models/{NAME}/tree/([^/]+)", "_tree"),
    ("GET", f"/api/models/{NAME}", "_info"),
    ("GET HEAD", rf"/{NAME}/resolve/([^/]+)/(.+)", "_resolve"),
]
