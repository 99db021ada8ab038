"""A Hugging Face Hub on this machine: what the real clients ask for, over real HTTP.

    with HubStandIn(folder) as hub:
        subprocess.run(command, env=os.environ | hub.environment())

The clients read their environment when they are imported, so they belong in a process of their
own. Repositories have one branch, main; the Hub's newer storage protocol, Xet, is switched off.
"""

import base64
import hashlib
import io
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

HERE = Path(__file__).parent
WRITE, READ = "hf_standinwrite", "hf_standinread"
"""The two tokens that are known; both are user "tester"'s."""
LARGE = (".safetensors", ".parquet", ".bin", ".zip")
"""Files that go through LFS, as the Hub's .gitattributes says."""
BUSY = b"<html><body><h1>503 Service Unavailable</h1></body></html>"


@dataclass(frozen=True)
class File:
    """A version of a file: where its bytes are, and the names that git and LFS give them."""

    content: Path
    size: int
    sha1: str
    sha256: str
    large: bool

    @property
    def oid(self) -> str:
        return self.sha256 if self.large else self.sha1


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    id: str
    message: str
    files: dict[str, File]


@dataclass
class Repository:
    """Commits, oldest first, and who may do what."""

    id: str
    kind: str
    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)

    def commit(self, message: str, files: dict[str, File]) -> Commit:
        self.commits.append(Commit(secrets.token_hex(20), message, files))
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        if revision == "main":
            return self.commits[-1]
        for commit in self.commits:
            if commit.id == revision:
                return commit
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class Refusal(Exception):
    """An answer that is an error, in the Hub's own words."""

    def __init__(self, status: int, code: str, message: str, commit: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.commit = status, code, commit


class HubStandIn:
    """The server. ``folder`` takes the contents of files and the clients' caches.

    Attributes:
        endpoint: http://127.0.0.1:PORT, the same for life.
        requests: how many there were of each "METHOD /path", those during an outage included.
        unknown: requests that this stand-in has no answer to; a test of it wants none.
        repositories: by (kind, id); kind is "model", "dataset" or "space".
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: Counter[str] = Counter()
        self.unknown: list[str] = []
        self.lock = threading.Lock()
        self.failing = self.failing_only = ""
        self.over = threading.Event()
        self.connections: set[socket.socket] = set()
        (folder / "objects").mkdir(parents=True, exist_ok=True)
        self._listen(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._address[1]}"

    def _listen(self, address: tuple[str, int]) -> None:
        handler = type("Bound", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(address, handler)
        self._server.daemon_threads = True
        self._address = self._server.server_address
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _hang_up(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "HubStandIn":
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._hang_up()

    def environment(self, token: str = WRITE) -> dict[str, str]:
        """What a client's process needs to speak to this Hub and no other; "" for no token."""
        home = self.folder / "home"
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": token,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_DATASETS_CACHE": str(home / "datasets"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent / "train", HERE.parent))),
        }

    def client(self, code: str, *arguments: object, token: str = WRITE) -> list[str]:
        """Runs Python that speaks to this Hub and must succeed; the lines that it printed.

        It can import what tests/ and train/ have.
        """
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | self.environment(token),
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout.splitlines()

    # -- what a test does behind the clients' backs ----------------------------------------------

    @contextmanager
    def outage(self, kind: str = "unavailable", only: str = "") -> Iterator[None]:
        """Until the end of the block nothing works.

        Args:
            kind: "unavailable", every answer is a 503 with a page of HTML; "refused", nobody
                listens; "silent", requests are taken and not answered; "cut", answers break off.
            only: spares all but "METHOD /path"s that begin so (who refuses, refuses all).
        """
        self.over.clear()
        self.failing, self.failing_only = kind, only
        if kind == "refused":
            self._hang_up()
        try:
            yield
        finally:
            self.failing = ""
            self.over.set()
            if kind == "refused":
                self._listen(self._address)

    def create(self, name: str, kind: str = "model", **properties: object) -> Repository:
        """A new repository with .gitattributes in it, as the Hub makes them."""
        repository = self.repositories[kind, name] = Repository(name, kind, **properties)
        text = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE)
        repository.commit(
            "initial commit", {".gitattributes": self.store(text.encode(), large=False)}
        )
        return repository

    def put(self, name: str, path: str, content: bytes, kind: str = "model") -> Commit:
        """Commits one file without a client; also how one that was pushed gets damaged."""
        repository = self.repositories.get((kind, name)) or self.create(name, kind)
        stored = self.store(content, large=path.endswith(LARGE))
        return repository.commit(f"put {path}", repository.commits[-1].files | {path: stored})

    def files(self, name: str, kind: str = "model") -> dict[str, bytes]:
        """Contents of main."""
        files = self.repositories[kind, name].commits[-1].files
        return {path: file.content.read_bytes() for path, file in files.items()}

    def messages(self, name: str, kind: str = "model") -> list[str]:
        """Of the commits, oldest first; none where there is no repository."""
        repository = self.repositories.get((kind, name))
        return [commit.message for commit in repository.commits] if repository else []

    def store(self, content: bytes, large: bool) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        path = self.object(sha256)
        if not path.is_file():
            new = path.with_name(f"{sha256}.{secrets.token_hex(4)}")
            new.write_bytes(content)
            new.replace(path)
        return File(path, len(content), sha1, sha256, large)

    def object(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256


class Handler(BaseHTTPRequestHandler):
    """One connection. A route is a method of this class under a pattern of "METHOD /path"."""

    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.hub.connections.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(OSError):  # a client or an outage that hangs up in the middle
            super().handle()

    def log_message(self, *_: object) -> None:
        """Nothing: `HubStandIn.requests` is the log."""

    def do(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.body = self._read_body()
        request = f"{self.command} {url.path}"
        with self.hub.lock:
            self.hub.requests[request] += 1
        failing = self.hub.failing if request.startswith(self.hub.failing_only) else ""
        self.close_connection = self.close_connection or failing in ("silent", "cut")
        self.cut = failing == "cut"
        if failing == "silent":
            self.hub.over.wait()
            return
        if failing == "unavailable":
            self.answer(503, BUSY, {"Content-Type": "text/html"})
            return
        try:
            for pattern, route in ROUTES:
                if match := pattern.fullmatch(request):
                    self._check_token()
                    route(self, **{k: unquote(v or "") for k, v in match.groupdict().items()})
                    return
            self.hub.unknown.append(request)
            raise Refusal(404, "", f"The stand-in does not know {request}")
        except Refusal as refusal:
            headers = {"X-Error-Message": str(refusal)}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            if refusal.commit:
                headers["X-Repo-Commit"] = refusal.commit
            self.answer_json({"error": str(refusal)}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionError("the client hung up")
            return body
        parts = []
        while size := int(self.rfile.readline() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if self.cut else content)

    def answer_json(
        self, value: object, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        content = json.dumps(value).encode()
        self.answer(status, content, {"Content-Type": "application/json", **(headers or {})})

    # -- who asks, and for what ------------------------------------------------------------------

    def _check_token(self) -> None:
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.token not in ("", READ, WRITE) and not self.path.startswith("/lfs/"):
            raise Refusal(401, "", "Invalid credentials in Authorization header")

    def _must_write(self) -> None:
        if not self.token:
            raise Refusal(401, "", "Invalid username or password.")
        if self.token != WRITE:
            raise Refusal(403, "", "You don't have the rights to write with this token")

    def _repository(self, kind: str, name: str) -> Repository:
        repository = self.hub.repositories.get((kind.removesuffix("s") or "model", name))
        if repository is None or (repository.private and not self.token):
            # The Hub does not tell strangers which repositories there are.
            raise Refusal(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return repository

    def _readable(self, kind: str, name: str, revision: str) -> Commit:
        repository = self._repository(kind, name)
        commit = repository.at(revision)
        if repository.gated:
            message = f"Access to {kind} {name} is restricted. You must be on the list."
            raise Refusal(403, "GatedRepo", message, commit.id)
        return commit

    # -- routes: accounts and repositories -------------------------------------------------------

    def whoami(self) -> None:
        if not self.token:
            raise Refusal(401, "", "Invalid username or password.")
        role = "write" if self.token == WRITE else "read"
        access = {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}
        self.answer_json({"type": "user", "name": "tester", "orgs": [], "auth": access})

    def create_repository(self) -> None:
        self._must_write()
        wanted = json.loads(self.body)
        kind = wanted.get("type") or "model"
        name = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        where = {"url": f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"}
        if (kind, name) in self.hub.repositories:
            self.answer_json({"error": "You already created this repo", **where}, 409)
            return
        private = wanted.get("visibility") == "private"
        self.hub.create(name, kind, private=private)
        self.answer_json({"name": name, **where})

    def validate_card(self) -> None:
        self.answer_json({"errors": [], "warnings": []})

    def agent_harnesses(self) -> None:
        """The `hf` command asks which programs are agents: none."""
        self.answer_json({"standardEnvVars": [], "harnesses": {}})

    def may_read(self, kind: str, name: str) -> None:
        self._readable(kind, name, "main")
        self.answer_json({})

    def may_write(self, kind: str, name: str) -> None:
        self._repository(kind, name)
        self._must_write()
        self.answer_json({})

    # -- routes: pushing -------------------------------------------------------------------------

    def preupload(self, kind: str, name: str, revision: str) -> None:
        self._must_write()
        present = self._repository(kind, name).at(revision).files
        self.answer_json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                        "shouldIgnore": False,
                        "oid": present[file["path"]].oid if file["path"] in present else None,
                    }
                    for file in json.loads(self.body)["files"]
                ]
            }
        )

    def lfs_batch(self, kind: str, name: str) -> None:
        self._must_write()
        self._repository(kind, name)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.hub.object(wanted["oid"]).is_file():
                entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        self.answer_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "", "The content does not have the sha256 it was announced with")
        self.hub.store(self.body, large=True)
        self.answer(200, b"", {})

    def commit(self, kind: str, name: str, revision: str) -> None:
        self._must_write()
        repository = self._repository(kind, name)
        header, *operations = map(json.loads, io.BytesIO(self.body))
        with self.hub.lock:
            files = dict(repository.at(revision).files)
            for operation in operations:
                self._apply(operation["key"], operation["value"], files)
            made = repository.commit(header["value"]["summary"], files)
        url = f"{self.hub.endpoint}/{name}/commit/{made.id}"
        self.answer_json({"success": True, "commitOid": made.id, "commitUrl": url})

    def _apply(self, key: str, value: dict, files: dict[str, File]) -> None:
        """One operation of a commit."""
        path = value["path"]
        if key == "file":
            files[path] = self.hub.store(base64.b64decode(value["content"]), large=False)
        elif key == "lfsFile":
            stored = self.hub.object(value["oid"])
            if not stored.is_file():
                raise Refusal(400, "", f"LFS object {value['oid']} was not uploaded")
            files[path] = self.hub.store(stored.read_bytes(), large=True)
        else:
            inside = path if key == "deletedFile" else path.rstrip("/") + "/"
            for gone in [name for name in files if name.startswith(inside)]:
                del files[gone]

    # -- routes: reading -------------------------------------------------------------------------

    def information(self, kind: str, name: str, revision: str = "") -> None:
        repository = self._repository(kind, name)
        commit = repository.at(revision or "main")
        self.answer_json(
            {
                "id": name,
                "sha": commit.id,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": path} for path in commit.files],
            }
        )

    def tree(self, kind: str, name: str, revision: str, path: str) -> None:
        commit = self._readable(kind, name, revision)
        inside = f"{path}/" if path else ""
        recursive = self.query.get("recursive", "").lower() in ("1", "true")
        entries = _entries(commit)
        if inside and path not in entries:
            raise Refusal(404, "EntryNotFound", f"{path} does not exist", commit.id)
        found = {name: entry for name, entry in entries.items() if name.startswith(inside)}
        direct = {name: e for name, e in found.items() if "/" not in name.removeprefix(inside)}
        self.answer_json(list((found if recursive else direct).values()))

    def paths_information(self, kind: str, name: str, revision: str) -> None:
        commit = self._readable(kind, name, revision)
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        entries = _entries(commit)
        self.answer_json([entries[path] for path in paths if path in entries])

    def resolve(self, kind: str, name: str, revision: str, path: str) -> None:
        commit = self._readable(kind, name, revision)
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found", commit.id)
        file = commit.files[path]
        content = file.content.read_bytes()
        headers = {
            "ETag": f'"{file.oid}"',
            "X-Repo-Commit": commit.id,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if file.large:
            headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            self.answer(200, content, headers)
            return
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
        if start >= len(content):
            self.answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self.answer(206, content[start:stop], headers)


def _entries(commit: Commit) -> dict[str, dict[str, object]]:
    """Files and folders of a commit as /tree lists them, by path."""
    entries: dict[str, dict[str, object]] = {}
    for path, file in sorted(commit.files.items()):
        for parent in list(Path(path).parents)[-2::-1]:
            folder = {"type": "directory", "path": parent.as_posix(), "oid": "0" * 40, "size": 0}
            entries.setdefault(parent.as_posix(), folder)
        entries[path] = {"type": "file", "path": path, "oid": file.sha1, "size": file.size}
        if file.large:
            entries[path]["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return entries


_NAME = r"(?P<name>[^/]+/[^/]+?)"
_API = rf"/api/(?P<kind>models|datasets|spaces)/{_NAME}"
_PAGE = rf"/(?:(?P<kind>datasets|spaces)/)?{_NAME}"
_REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    (re.compile(pattern), route)
    for pattern, route in (
        (r"GET /api/whoami-v2", Handler.whoami),
        (r"POST /api/repos/create", Handler.create_repository),
        (r"POST /api/validate-yaml", Handler.validate_card),
        (r"GET /api/agent-harnesses", Handler.agent_harnesses),
        (rf"GET {_API}/auth-check", Handler.may_read),
        (rf"GET {_API}/auth-check/write", Handler.may_write),
        (rf"POST {_API}/preupload/{_REVISION}", Handler.preupload),
        (rf"POST {_PAGE}\.git/info/lfs/objects/batch", Handler.lfs_batch),
        (r"PUT /lfs/(?P<oid>\w+)", Handler.lfs_put),
        (rf"POST {_API}/commit/{_REVISION}", Handler.commit),
        (rf"GET {_API}", Handler.information),
        (rf"GET {_API}/revision/{_REVISION}", Handler.information),
        (rf"GET {_API}/tree/{_REVISION}(?:/(?P<path>.+))?", Handler.tree),
        (rf"POST {_API}/paths-info/{_REVISION}", Handler.paths_information),
        (rf"(?:GET|HEAD) {_PAGE}/resolve/{_REVISION}/(?P<path>.+)", Handler.resolve),
    )
]
