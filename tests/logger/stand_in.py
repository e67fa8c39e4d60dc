"""An HTTP server on this machine that answers as much of W&B's protocol as a run needs.

It keeps every history line that it is sent, in the order of arrival, and answers a client that
resumes a run with what it has, as the real one does. Read off the requests of wandb 0.31.
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
        return {}

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
            answer = {"data": self.server.answer(content["query"], content.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.stream(self.path.split("/")[-2], json.loads(body))
        self._reply(answer)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._reply({})

    def do_GET(self) -> None:
        self._reply({})

    def _reply(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be silent."""


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
