"""A small Hub on this machine: the Hub's protocol for reading, a CDN with signed addresses on
another host name, faults on demand, latency, limited bandwidth, and a count of everything.
"""

import base64
import hashlib
import json
import os
import random
import re
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

TOKEN = "hf_secret_token"
SIGNATURE = "secret-signature"
PIECE = 128 << 10  # bytes sent at a time
FAULTS = ("reset", "cut", "500", "429", "expired", "range", "short", "stall")


class Sparse:
    """A file that is zeros after a head: nothing of it is stored."""

    def __init__(self, head, size):
        self.head, self.size = head, size

    def __len__(self):
        return self.size

    def __getitem__(self, part):
        start, stop, _ = part.indices(self.size)
        head = self.head[start:stop]
        return head + bytes(stop - start - len(head))


class OnDisk:
    """A file of this machine."""

    def __init__(self, path):
        self.path, self.size = Path(path), Path(path).stat().st_size
        self.descriptor = os.open(path, os.O_RDONLY)

    def __len__(self):
        return self.size

    def __getitem__(self, part):
        start, stop, _ = part.indices(self.size)
        return os.pread(self.descriptor, stop - start, start)


@dataclass
class Repo:
    """A repository. ``revisions``: files by name, by commit. ``refs``: commits by branch."""

    revisions: dict[str, dict[str, object]]
    refs: dict[str, str]
    gated: bool = False
    renamed: str | None = None
    private: bool = False
    digests: dict[int, str] = field(default_factory=dict)

    def commit(self, revision):
        """The commit of a revision."""
        if revision in self.refs:
            return self.refs[revision]
        return revision if revision in self.revisions else None

    def sha256(self, data):
        """What identifies a file."""
        if id(data) not in self.digests:
            whole = data if isinstance(data, bytes) else repr((id(data), len(data))).encode()
            self.digests[id(data)] = hashlib.sha256(whole).hexdigest()
        return self.digests[id(data)]


def repo(files, commit="a" * 40, **more):
    """A repository of one commit."""
    return Repo({commit: dict(files)}, {"main": commit}, **more)


def is_large(name):
    """Whether the Hub would store a file as a large one."""
    return name.endswith((".safetensors", ".bin", ".pt", ".gguf", ".model"))


class HubServer(ThreadingHTTPServer):
    """The Hub and its CDN. Usable as a context manager.

    ``latency``: seconds before each answer. ``rate``: bytes a second of one connection to the CDN.
    ``faults``: the chance of one at each request to the CDN, and ``kinds`` of them; at most
    ``most`` at all. ``lifetime``: answers that a signed address is good for. ``plain``: serve
    ``/repo/name/file`` as a plain web server. ``store``: a folder for what is uploaded; by default
    it is kept in memory. ``cas``: a folder that takes uploads by Xet; their
    contents are then unknown here, and zeros stand for them.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, repos, *, latency=0.0, rate=0.0, faults=0.0, kinds=FAULTS, seed=0, store=None
    ):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.latency, self.rate = repos, latency, rate
        self.faults, self.kinds, self.most = faults, kinds, 10**9
        self.chance = random.Random(seed)
        self.lifetime = 10**9
        self.store = Path(store) if store is not None else None
        self.cas = None
        self.objects = {}  # large files that were uploaded, by their SHA-256
        self.plain = False
        self.etag = ""  # appended to all ETags of the CDN
        self.lock = threading.Lock()
        self.uses = {}
        self.reset_counts()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}"

    def reset_counts(self):
        """Forget what was asked for."""
        self.requests = []  # (kind, name), kind: api, resolve, cdn
        self.bytes = {}  # sent by the CDN, by "repo/name"
        self.ranges = {}  # answered, by "repo/name"
        self.injected = []
        self.authorized = []  # kinds of requests that carried a token
        self.connections = 0

    def count(self, kind):
        """Requests of a kind."""
        return sum(1 for found, _ in self.requests if found == kind)

    def fault(self):
        """The fault of this request, if any."""
        with self.lock:
            if self.most <= 0 or self.chance.random() >= self.faults:
                return None
            self.most -= 1
            self.injected.append(self.chance.choice(self.kinds))
            return self.injected[-1]

    def environment(self, home):
        """The environment of a client."""
        found = {
            **os.environ,
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
        }
        found.pop("HF_HUB_OFFLINE", None)
        return found

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, *arguments):
        """Be quiet."""

    def do_HEAD(self):
        """As GET without a body."""
        self.do_GET()

    def do_GET(self):
        """A description of a repository, the place of a file, or bytes of a file."""
        if self.server.latency:
            time.sleep(self.server.latency)
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        tree = re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)/tree/([^/]+)/?", path)
        listing = re.fullmatch(
            r"/api/models/([^/]+(?:/(?!revision|tree)[^/]+)?)(?:/revision/(.+))?", path
        )
        file = re.fullmatch(r"/([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path)
        data = re.fullmatch(r"/cdn/(.+)/([0-9a-f]{40})/(.+)", path)
        kind = "api" if listing or tree else "resolve" if file else "cdn" if data else "other"
        with self.server.lock:
            self.server.requests.append((kind, path))
            if "Authorization" in self.headers:
                self.server.authorized.append(kind)
        if self.server.cas is not None and "/xet-" in path:
            place = f"local://{self.server.cas}"
            expires = 9_999_999_999
            self._send(
                200,
                json.dumps({"casUrl": place, "accessToken": "t", "exp": expires}).encode(),
                {
                    "X-Xet-Cas-Url": place,
                    "X-Xet-Access-Token": "t",
                    "X-Xet-Token-Expiration": str(expires),
                    "Content-Type": "application/json",
                },
            )
            return
        plain = re.fullmatch(r"/([^/]+/[^/]+)/([^/]+)", path) if self.server.plain else None
        if plain:
            files = self.server.repos[plain[1]].revisions["a" * 40]
            if plain[2] in files:
                self._range(files[plain[2]], {"ETag": '"1"'}, plain[0])
            else:
                self._send(404, b"", {})
        elif tree:
            self._tree(*tree.groups())
        elif listing:
            self._listing(listing[1], listing[2] or "main")
        elif file:
            self._resolve(*file.groups())
        elif data:
            self._data(*data.groups(), parse_qs(parts.query))
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    # -- writing ---------------------------------------------------------------------------------

    def do_POST(self):
        """Repositories, branches and commits."""
        if self.server.latency:
            time.sleep(self.server.latency)
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            self.server.requests.append(("write", path))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._json(401, {"error": "Invalid credentials"})
            elif path == "/api/validate-yaml":
                self._json(200, {"errors": [], "warnings": []})
            elif path == "/api/repos/create":
                self._create(json.loads(body))
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path):
                self._branch(match[1], match[2], json.loads(body or b"{}"))
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
                files = [
                    {"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self._json(200, {"files": files})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/(.+)", path):
                self._paths(match[1], match[2], parse_qs(body.decode()), body)
            elif path.endswith(".git/info/lfs/objects/batch"):
                self._batch(json.loads(body))
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
                self._commit(match[1], match[2], [json.loads(line) for line in body.splitlines()])
            else:
                self._json(404, {})

    def do_PUT(self):
        """The bytes of a large file."""
        size = int(self.headers.get("Content-Length") or 0)
        sha256 = self.path.rpartition("/")[2]
        fault = self.server.fault() if "500" in self.server.kinds else None
        if self.server.store is None:
            data = self.rfile.read(size)
            found = hashlib.sha256(data).hexdigest()
        else:
            path, digest, left = self.server.store / sha256, hashlib.sha256(), size
            with path.open("wb") as file:
                while left:
                    piece = self.rfile.read(min(left, 1 << 20))
                    digest.update(piece)
                    file.write(piece)
                    left -= len(piece)
            data, found = OnDisk(path), digest.hexdigest()
        if fault or found != sha256:
            self._json(500 if fault else 400, {})
            return
        self.server.objects[sha256] = data
        self._json(200, {})

    def do_DELETE(self):
        """A branch."""
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", path)
        with self.server.lock:
            found = self.server.repos[match[1]].refs.pop(match[2], None)
        self._json(200 if found else 404, {})

    def _create(self, about):
        name = (
            f"{about['organization']}/{about['name']}" if "organization" in about else about["name"]
        )
        first = _git(f"first commit of {name}")
        made = Repo({first: {".gitattributes": b"*.safetensors filter=lfs"}}, {"main": first})
        made.private = about.get("private", about.get("visibility") == "private")
        if name in self.server.repos:
            self._json(409, {"error": "exists", "url": f"{self.server.url}/{name}"})
            return
        self.server.repos[name] = made
        self._json(200, {"url": f"{self.server.url}/{name}", "id": name})

    def _branch(self, name, branch, about):
        repo = self.server.repos[name]
        commit = repo.commit(about.get("startingPoint", "main"))
        if branch in repo.refs:
            self._json(409, {"error": "exists"})
            return
        repo.refs[branch] = commit
        self._json(200, {})

    def _paths(self, name, revision, form, body):
        repo = self.server.repos[name]
        paths = form.get("paths") or json.loads(body)["paths"]
        files = repo.revisions.get(repo.commit(revision), {})
        self._json(200, [_entry(repo, p, files[p]) for p in paths if p in files])

    def _batch(self, about):
        objects = [
            {"oid": o["oid"], "size": o["size"]}
            if o["oid"] in self.server.objects
            else {
                "oid": o["oid"],
                "size": o["size"],
                "actions": {"upload": {"href": f"{self.server.cdn}/lfs/{o['oid']}"}},
            }
            for o in about["objects"]
        ]
        self._json(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name, branch, lines):
        repo = self.server.repos[name]
        parent = repo.refs.get(branch)
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, parent):
            self._json(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        files = dict(repo.revisions[parent])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if self.server.cas is not None and value["oid"] not in self.server.objects:
                    self.server.objects[value["oid"]] = Sparse(b"", value["size"])
                files[value["path"]] = self.server.objects[value["oid"]]
                repo.digests[id(files[value["path"]])] = value["oid"]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = hashlib.sha1(f"{parent}{len(repo.revisions)}{branch}".encode()).hexdigest()
        repo.revisions[commit] = files
        repo.refs[branch] = commit
        url = f"{self.server.url}/{name}/commit/{commit}"
        self._json(200, {"commitUrl": url, "commitOid": commit, "pullRequestUrl": None})

    def _json(self, status, value):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # -- reading ---------------------------------------------------------------------------------

    def _repo(self, name):
        found = self.server.repos.get(name)
        if found is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif found.renamed is not None:
            self._send(307, b"", {"Location": self.path.replace(name, found.renamed, 1)})
            found = None
        return found

    def _listing(self, name, revision):
        repo = self._repo(name)
        if repo is None:
            return
        commit = repo.commit(revision)
        if commit is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for file, data in repo.revisions[commit].items():
            about = {"rfilename": file, "size": len(data), "blobId": _git(file)}
            if is_large(file):
                sha256 = repo.sha256(data)
                about["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 130}
            siblings.append(about)
        about = {
            "id": name,
            "modelId": name,
            "private": repo.private,
            "sha": commit,
            "siblings": siblings,
        }
        self._send(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _tree(self, name, revision):
        repo = self._repo(name)
        commit = repo.commit(revision) if repo is not None else None
        if commit is None:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        tree = [_entry(repo, file, data) for file, data in repo.revisions[commit].items()]
        self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name, revision, file):
        repo = self._repo(name)
        if repo is None:
            return
        if repo.gated and self.headers.get("Authorization") != "Bearer granted":
            said = f"Access to model {name} is restricted."
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": said})
            return
        commit = repo.commit(revision)
        data = repo.revisions.get(commit, {}).get(file)
        if data is None:
            code = "EntryNotFound" if commit else "RevisionNotFound"
            self._send(404, b"{}", {"X-Error-Code": code})
            return
        headers = {"X-Repo-Commit": commit}
        if not is_large(file):
            self._range(data, headers | {"ETag": f'"{_git(file)}"'}, f"{name}/{file}")
            return
        with self.server.lock:
            number = len(self.server.uses)
            self.server.uses[number] = 0
        place = f"{self.server.cdn}/cdn/{name}/{commit}/{quote(file)}?sig={SIGNATURE}&n={number}"
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{repo.sha256(data)}"'}
        self._send(302, b"", headers | linked | {"Location": place})

    def _data(self, name, commit, file, query):
        server, repo = self.server, self.server.repos[name]
        number = int(query["n"][0])
        with server.lock:
            server.uses[number] += 1
            old = server.uses[number] > server.lifetime
        if old or query.get("sig") != [SIGNATURE]:
            body = f"<Error><Message>Request has expired</Message><S>{SIGNATURE}</S></Error>"
            self._send(403, body.encode(), {})
            return
        data = repo.revisions[commit][file]
        headers = {"ETag": f'"{repo.sha256(data)[:20]}{server.etag}"'}
        self._range(data, headers, f"{name}/{file}", server.fault())

    def _range(self, data, headers, key, fault=None):
        server = self.server
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        start, stop = (int(match[1]), int(match[2]) + 1) if match else (0, len(data))
        stop = min(stop, len(data))
        if match:
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        if fault == "500":
            self._send(503, b"busy", {})
            return
        if fault == "429":
            how = server.chance.choice(
                [
                    {"Retry-After": "0"},
                    {"RateLimit": '"resolvers";r=0;t=0'},
                    {"Retry-After": formatdate(time.time(), usegmt=True)},
                ]
            )
            self._send(429, b"{}", how)
            return
        if fault == "expired":
            self._send(403, b"<Error><Message>expired</Message></Error>", {})
            return
        if fault == "range":
            headers["Content-Range"] = f"bytes {start + 1}-{stop}/{len(data)}"
        length = stop - start
        end = stop
        if fault == "short":
            end, length = start + length // 2, length // 2
        elif fault in ("reset", "cut", "stall"):
            end = start + server.chance.randrange(length + 1)
        self.send_response(206 if match else 200)
        for name, value in ({"Content-Length": str(length)} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        with server.lock:
            server.ranges[key] = server.ranges.get(key, 0) + 1
        if self.command == "HEAD":
            return
        began, sent = time.monotonic(), 0
        for at in range(start, end, PIECE):
            piece = data[at : min(end, at + PIECE)]
            self.wfile.write(piece)
            sent += len(piece)
            with server.lock:
                server.bytes[key] = server.bytes.get(key, 0) + len(piece)
            if server.rate:
                ahead = sent / server.rate - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)
        self.wfile.flush()
        if fault in ("reset", "cut", "stall"):
            self.close_connection = True
            if fault == "reset":
                self.connection.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: a reset

    def _send(self, status, data, headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _mode(name):
    return "lfs" if is_large(name) else "regular"


def _entry(repo, name, data):
    found = {"type": "file", "path": name, "size": len(data), "oid": _git(name)}
    if is_large(name):
        sha256 = repo.sha256(data)
        found["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
    return found


def _git(name):
    return hashlib.sha1(name.encode()).hexdigest()
