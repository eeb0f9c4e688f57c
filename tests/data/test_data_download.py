import hashlib
import http.server
import io
import socket
import tarfile
import threading

import pytest

from data.sources.cifar10 import load_cifar10

RECORD = bytes([7]) + bytes(range(256)) * 12


def make_archive():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = 2 * len(RECORD)
            archive.addfile(member, io.BytesIO(RECORD * 2))
    return buffer.getvalue()


ARCHIVE = make_archive()
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/missing.tar.gz":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(ARCHIVE)))
        self.end_headers()
        self.wfile.write(ARCHIVE[: len(ARCHIVE) // 2] if self.path in ("/short.tar.gz", "/stalled.tar.gz") else ARCHIVE)
        if self.path == "/stalled.tar.gz":
            self.server.given_up.wait(60)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests, running.given_up = [], threading.Event()
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        yield running
        running.given_up.set()
        running.shutdown()
        thread.join()


def load(root, url, **options):
    return load_cifar10(root=root, split="test", url=url, records_per_file=2, **({"sha256": SHA256} | options))


def test_what_is_missing_is_downloaded_once_and_kept(tmp_path, server):
    root = tmp_path / "new" / "folder"
    for _ in range(2):
        dataset = load(root, f"{server.url}/x.tar.gz")
        assert dataset.labels.tolist() == [7, 7]
        assert dataset.images[1].flatten().tolist() == list(RECORD[1:])
    assert server.requests == ["/x.tar.gz"]
    assert [path.name for path in root.iterdir()] == ["cifar-10-binary.tar.gz"]
    assert (root / "cifar-10-binary.tar.gz").read_bytes() == ARCHIVE


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("x.tar.gz", {"sha256": "0" * 64}, "invalid hash value"),
        ("short.tar.gz", {}, "invalid hash value"),
        ("missing.tar.gz", {}, "404"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(tmp_path, server, refuses, name, options, word):
    url = f"{server.url}/{name}"
    with refuses(url, word, "put cifar-10-binary.tar.gz", tmp_path):
        load(tmp_path, url, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.tar.gz", "no-url", "file:///nowhere/x.tar.gz", "http://[bad/x"])
def test_no_network_is_one_line(tmp_path, monkeypatch, refuses, url):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with refuses(url, "could not be fetched", tmp_path):
        load(tmp_path, url)
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_cannot_be_written_is_one_line(tmp_path, server, refuses):
    (tmp_path / "file").write_text("in the way")
    with refuses("could not be fetched"):
        load(tmp_path / "file" / "root", f"{server.url}/x.tar.gz")


def test_downloading_can_be_turned_off(tmp_path, server, refuses):
    with refuses("downloading is off", "put cifar-10-binary.tar.gz"):
        load(tmp_path, f"{server.url}/x.tar.gz", download=False)
    assert server.requests == []


def test_an_interrupted_download_leaves_nothing_behind(tmp_path, server, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.hub.shutil.move", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, f"{server.url}/x.tar.gz")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_says_nothing_more_is_given_up(tmp_path, server, monkeypatch, refuses):
    monkeypatch.setattr("data.sources.cifar10.TIMEOUT_SECONDS", 0.2)
    with refuses("could not be fetched", "timed out"):
        load(tmp_path, f"{server.url}/stalled.tar.gz")
    assert list(tmp_path.iterdir()) == [] and socket.getdefaulttimeout() is None
