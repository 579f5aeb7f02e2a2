"""Hub downloads take safe files only, and every failure is either "no such model" or "did not answer"."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from thrifty.core.errors import NotFoundError
from thrifty.data import hub


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_probe", functools.cache(lambda: None))


def serve(monkeypatch: pytest.MonkeyPatch, action: Callable[..., Any]) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", action)


@pytest.mark.usefixtures("online")
def test_only_safe_files_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def action(name: str, **settings: Any) -> None:
        asked.update(settings, name=name)
        (settings["local_dir"] / "model.safetensors").write_text("x")
        (settings["local_dir"] / ".cache").mkdir()

    serve(monkeypatch, action)
    assert "owner/model" in hub.download("owner/model", tmp_path, revision="v1")
    assert (asked["name"], asked["revision"]) == ("owner/model", "v1")
    assert not any(pattern.endswith((".bin", ".pt", ".pkl", ".py", "*")) for pattern in asked["allow_patterns"])
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.usefixtures("online")
def test_model_without_safetensors_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve(monkeypatch, lambda name, **settings: None)
    with pytest.raises(NotFoundError, match="no safetensors"):
        hub.download("owner/model", tmp_path)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (errors.RepositoryNotFoundError, "the hub has no model 'owner/model'"),
        (errors.RevisionNotFoundError, "owner/model has no revision 'v1'"),
        (errors.GatedRepoError, "owner/model is gated"),
    ],
)
def test_answers_of_the_hub_are_final(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type[Exception], line: str
) -> None:
    def action(name: str, **settings: Any) -> None:
        raise kind.__new__(kind)

    serve(monkeypatch, action)
    with pytest.raises(NotFoundError, match=line) as caught:
        hub.download("owner/model", tmp_path, revision="v1")
    assert not isinstance(caught.value, hub.HubSilentError)


@pytest.mark.usefixtures("online")
def test_lost_connection_is_silence_but_a_full_disk_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lost(name: str, **settings: Any) -> None:
        raise errors.LocalEntryNotFoundError("connection lost\nmore")

    def full(name: str, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    serve(monkeypatch, lost)
    with pytest.raises(hub.HubSilentError, match="connection lost") as caught:
        hub.download("owner/model", tmp_path)
    assert "\n" not in str(caught.value)
    serve(monkeypatch, full)
    with pytest.raises(OSError, match="No space left"):
        hub.download("owner/model", tmp_path)


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (503, False)])
def test_probe_tells_a_server_that_works(monkeypatch: pytest.MonkeyPatch, status: int, answers: bool) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert (hub._probe() is None) == answers
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("name", "is_id"),
    [("a/b", True), ("a/b.c-d_e", True), ("a", False), ("a/b/c", False), ("/a/b", False), ("../b", False)],
)
def test_hub_ids_have_an_owner_and_a_name(name: str, is_id: bool) -> None:
    assert hub.is_hub_id(name) is is_id
