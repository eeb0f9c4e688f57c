import hashlib
import http.server
import io
import tarfile
import threading

import pytest

from data.sources.cifar10 import load_cifar10
from data.sources.download import DownloadError, download

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
MD5 = hashlib.md5(ARCHIVE).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/missing.tar.gz":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(ARCHIVE)))
        self.end_headers()
        self.wfile.write(ARCHIVE[: len(ARCHIVE) // 2] if self.path == "/short.tar.gz" else ARCHIVE)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        yield running
        running.shutdown()
        thread.join()


def load(root, url, **options):
    return load_cifar10(root=root, split="test", url=url, records_per_file=2, **({"md5": MD5} | options))


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
        ("x.tar.gz", {"md5": "0" * 32}, "checksum"),
        ("short.tar.gz", {}, "checksum"),
        ("missing.tar.gz", {}, "404"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(tmp_path, server, refuses, name, options, word):
    url = f"{server.url}/{name}"
    with refuses(url, word, "put cifar-10-binary.tar.gz or cifar-10-python.tar.gz", tmp_path):
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

    monkeypatch.setattr("data.sources.download.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download(f"{server.url}/x.tar.gz", tmp_path / "x", md5=MD5)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_keeps_the_file_that_was_there(tmp_path, server):
    target = tmp_path / "x"
    target.write_text("old")
    with pytest.raises(DownloadError, match="checksum"):
        download(f"{server.url}/x.tar.gz", target, md5="0" * 32)
    assert target.read_text() == "old"
