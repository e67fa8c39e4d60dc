import functools
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from written_sets import parquet_set, write_cifar10

from quantable.base.errors import UserError
from quantable.base.places import ROOT
from quantable.data.download import SourceFile, download, unpack
from quantable.data.layouts import set_present

CONTENT = bytes(range(256)) * 40


class Mirror(BaseHTTPRequestHandler):
    """``/good`` knows ranges, ``/whole`` does not, ``/short`` breaks off, ``/bad`` sends others."""

    def __init__(self, content, asked, *args) -> None:
        self.content, self.asked = content, asked
        super().__init__(*args)

    def do_GET(self) -> None:
        kind = self.path.strip("/")
        begin = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
        begin = 0 if kind == "whole" else int(begin)
        self.asked.append((kind, begin))
        if kind == "gone":
            self.send_error(404)
            return
        if begin >= len(self.content):
            self.send_error(416)
            return
        body = self.content[begin:] if kind != "bad" else b"?" * (len(self.content) - begin)
        self.send_response(206 if begin else 200)
        if begin:
            end = len(self.content)
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{end}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if kind == "short" else body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def mirror():
    """Start a server for ``content``: its address, and the list of what it was asked."""
    servers = []

    def start(content):
        asked = []
        handler = functools.partial(Mirror, content, asked)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def source(address, kinds, content=CONTENT, **changes) -> SourceFile:
    facts = {
        "name": "set.bin",
        "urls": [f"{address}/{kind}" for kind in kinds],
        "sha256": hashlib.sha256(content).hexdigest(),
        "unpack": False,
    }
    return SourceFile(**facts | changes)


def test_download_and_no_second_one(mirror, tmp_path) -> None:
    address, asked = mirror(CONTENT)
    for _ in range(2):
        path = download(source(address, ["good"]), tmp_path / "new")
        assert path.read_bytes() == CONTENT
    assert asked == [("good", 0)]
    assert [file.name for file in path.parent.iterdir()] == ["set.bin"]


def test_a_partial_file_is_continued(mirror, tmp_path) -> None:
    address, asked = mirror(CONTENT)
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:1000])
    assert download(source(address, ["good"]), tmp_path).read_bytes() == CONTENT
    assert asked == [("good", 1000)]


def test_a_server_without_ranges_starts_anew(mirror, tmp_path) -> None:
    address, _ = mirror(CONTENT)
    (tmp_path / "set.bin.part").write_bytes(CONTENT[:1000])
    assert download(source(address, ["whole"]), tmp_path).read_bytes() == CONTENT


def test_the_next_mirror_goes_on_where_one_broke_off(mirror, tmp_path) -> None:
    address, asked = mirror(CONTENT)
    path = download(source(address, ["gone", "short", "good"]), tmp_path)
    assert path.read_bytes() == CONTENT
    assert asked == [("gone", 0), ("short", 0), ("good", len(CONTENT) // 2)]


def test_a_wrong_hash_goes_to_the_next_mirror_from_nothing(mirror, tmp_path) -> None:
    address, asked = mirror(CONTENT)
    assert download(source(address, ["bad", "good"]), tmp_path).read_bytes() == CONTENT
    assert asked == [("bad", 0), ("good", 0)]


def test_a_wrong_beginning_is_thrown_away(mirror, tmp_path) -> None:
    address, asked = mirror(CONTENT)
    (tmp_path / "set.bin.part").write_bytes(b"?" * 1000)
    assert download(source(address, ["good"]), tmp_path).read_bytes() == CONTENT
    assert asked == [("good", 1000), ("good", 0)]


def test_a_complete_partial_file_is_recognized(mirror, tmp_path) -> None:
    address, _ = mirror(CONTENT)
    (tmp_path / "set.bin.part").write_bytes(CONTENT)
    assert download(source(address, ["good"]), tmp_path).read_bytes() == CONTENT


def test_when_all_fail_each_is_named(mirror, tmp_path) -> None:
    address, _ = mirror(CONTENT)
    wanted = source(address, [], urls=[f"{address}/gone", f"{address}/bad", "file:///etc/passwd"])
    with pytest.raises(UserError) as error:
        download(wanted, tmp_path)
    message = str(error.value)
    assert f"{address}/gone: HTTP status 404" in message
    assert f"{address}/bad: its SHA-256 is wrong" in message
    assert "only http and https" in message
    assert not (tmp_path / "set.bin").exists()


def tar_of(folder) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder, folder.name)
    return buffer.getvalue()


def prepare(*words, **environment) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "reproduce" / "prepare.py"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | environment
    )


def test_the_command_downloads_unpacks_and_checks(mirror, tmp_path, pixels, labels) -> None:
    write_cifar10(tmp_path / "made" / "cifar-10-batches-py", pixels, labels)
    content = tar_of(tmp_path / "made" / "cifar-10-batches-py")
    address, _ = mirror(content)
    sha256 = hashlib.sha256(content).hexdigest()
    file = f"{{name: c.tar.gz, unpack: true, sha256: {sha256}, urls: ['{address}/good']}}"
    words = (
        "data=cifar10",
        f"data.root={tmp_path / 'data'}",
        "data.classes=3",
        "data.counts.train=12",
        "data.counts.test=12",
        "data.val_images=2",
        f"data.source.files=[{file}]",
    )
    done = prepare(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train: 10 images" in done.stdout
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar-10-batches-py"]
    again = prepare(*words)
    assert "downloading" not in again.stdout
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]


def test_zip_archives_are_unpacked(tmp_path, pixels, labels) -> None:
    parquet_set(tmp_path / "made", pixels, labels)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in (tmp_path / "made").iterdir():
            archive.write(path, f"inner/{path.name}")
    unpack(tmp_path / "set.zip")
    assert set_present(tmp_path / "inner")
    assert not (tmp_path / "set.zip").exists()


def test_an_archive_that_points_outside_is_refused(tmp_path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        member = tarfile.TarInfo("../outside")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(tmp_path / "set.tar")
    assert not (tmp_path.parent / "outside").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_local_copy_is_checked_and_its_variant_named(tmp_path, pixels, labels) -> None:
    parquet_set(tmp_path, pixels, labels, "JPEG")
    counts = ("data.counts.train=12", "data.counts.test=12", "data.val_images=2", "data.classes=3")
    done = prepare("data=cifar10", f"data.root={tmp_path}", *counts)
    assert done.returncode == 0
    assert done.stdout.startswith("CIFAR-10 (JPEG)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name one set with data=<id>: cifar10"),
        (["data=cifar01"], "data: unknown set 'cifar01'. Nearest: cifar10"),
        (["data=cifar10", "data.rot=x"], "unknown key 'data.rot'. Nearest: data.root"),
        (["data=cifar10", "seed"], "unknown key 'seed'"),
        (["data=fashion_mnist_mini", "data.val_images=a"], "data.val_images=a"),
        (["data=imagenet"], "ImageNet has no public download"),
        (["data=cifar10", "data.root=/dev/null/x", "data.source.files=[]"], "no images in an acc"),
    ],
)
def test_mistakes_are_one_message_and_status_2(words, message) -> None:
    done = prepare(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["data=cifar01"], ["data=fashion_mnist_mini"]])
def test_no_torch_is_loaded(tmp_path, words) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    done = prepare(*words, PYTHONPATH=str(tmp_path))
    assert "torch was imported" not in done.stderr
    assert done.returncode == (2 if words == ["data=cifar01"] else 0)
