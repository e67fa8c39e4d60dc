"""An HTTP server on this machine that answers as much of W&B's protocol as a run needs.

It keeps every history line that it is sent, in the order of arrival, and answers a client that
resumes a run with what it has, as the real one does; it refuses ids of runs that were deleted, and
keeps files and artifacts. Read off the requests of wandb 0.31.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Server(ThreadingHTTPServer):
    """What was sent, by run id."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.begun: dict[str, dict[str, Any]] = {}  # variables of a run's first UpsertBucket
        self.received: dict[str, list[int]] = defaultdict(list)  # steps, over all requests
        self.complete: set[str] = set()
        self.asked: list[str] = []
        self.deleted: set[str] = set()
        self.artifacts: dict[str, list[str]] = {}  # files by the name of what was committed
        self.files: dict[str, bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answer one GraphQL query by the name of what it asks for."""
        name = query.split("(")[0].split("{")[0].split()[-1]
        self.asked.append(name)
        project = {"name": "quantable", "entity": {"name": "somebody"}}
        if name == "Viewer":
            return {"viewer": {"id": "1", "entity": "somebody", "username": "somebody"}}
        if name == "RunResumeStatus":
            return {"model": project | {"bucket": self._resume(variables["name"])}}
        if name == "UpsertBucket":
            new = variables["name"] not in self.begun
            self.begun.setdefault(variables["name"], variables)
            run = {"id": variables["name"], "name": variables["name"], "project": project}
            bucket = run | {"displayName": variables["displayName"], "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": new}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/{f}"} for f in variables["files"]]
            return {
                "createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}
            }
        if name in ("CreateArtifact", "CreateArtifactManifest", "CreateArtifactFiles"):
            return self._artifact(name, variables)
        return {"project": {"artifact": None}} if name == "ArtifactType" else {}

    def close(self) -> None:
        """Answer nothing any more."""
        self.shutdown()
        self.server_close()

    def delete(self, run: str) -> None:
        """What somebody does on the website."""
        self.deleted.add(run)
        for kept in (self.lines, self.received, self.begun):
            kept.pop(run, None)  # type: ignore[attr-defined]

    def _artifact(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        if name == "CreateArtifact":
            called = variables["input"]["artifactCollectionName"]
            self.artifacts[called] = []
            made = {"id": called, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": made}}
        if name == "CreateArtifactManifest":
            file = {"id": "1", "uploadUrl": f"{self.url}/manifest", "uploadHeaders": []}
            return {"createArtifactManifest": {"artifactManifest": {"id": "1", "file": file}}}
        nodes = []
        for file in variables["input"]["artifactFiles"]:
            self.artifacts[file["artifactID"]].append(file["name"])
            place = {"uploadUrl": f"{self.url}/{file['name']}", "uploadHeaders": []}
            about = {"name": file["name"], "displayName": file["name"], "storagePath": file["name"]}
            nodes.append(
                {"id": file["name"], "artifact": {"id": file["artifactID"]}} | place | about
            )
        edges = [{"node": node} for node in nodes]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _resume(self, run: str) -> dict[str, Any] | None:
        if run not in self.begun:
            return None
        lines = self.lines[run]
        return {
            "id": run,
            "name": run,
            "summaryMetrics": json.dumps(lines[-1] if lines else {}),
            "displayName": run,
            "logLineCount": 0,
            "historyLineCount": len(lines),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in lines[-1:]]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }

    def stream(self, run: str, body: dict[str, Any]) -> None:
        """Keep the history lines of one file_stream request."""
        sent = body.get("files", {}).get("wandb-history.jsonl")
        if sent is not None:
            have = self.lines[run]
            new = [json.loads(line) for line in sent["content"]]
            have[sent["offset"] :] = new  # as the server does
            self.received[run] += [line["_step"] for line in new]
        if body.get("complete"):
            self.complete.add(run)

    def steps(self, run: str) -> list[int]:
        return [line["_step"] for line in self.lines[run]]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = {}
        if self.path == "/graphql":
            content = json.loads(body)
            variables = content.get("variables") or {}
            if "UpsertBucket" in content["query"] and variables["name"] in self.server.deleted:
                message = "run ID was used by a run that has been deleted"
                self._reply({"errors": [{"message": message}]}, status=409)
                return
            answer = {"data": self.server.answer(content["query"], variables)}
        elif self.path.endswith("/file_stream"):
            run = self.path.split("/")[-2]
            if run in self.server.deleted:
                self._reply({"error": "run not found"}, status=404)
                return
            self.server.stream(run, json.loads(body))
        self._reply(answer)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.files[self.path.lstrip("/")] = body
        self._reply({})

    def do_GET(self) -> None:
        self._reply({})

    def _reply(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be silent."""


@contextmanager
def serving(before: Server | None = None) -> Iterator[Server]:
    """A server, with what the one ``before`` it had."""
    server = Server()
    if before is not None:
        for name in ("lines", "begun", "received", "deleted"):
            setattr(server, name, getattr(before, name))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.close()
