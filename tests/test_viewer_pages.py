"""The pages' own sockets with hostile clients: who is let in, what a file may be."""

import json
import threading
from pathlib import Path

import pytest
from test_viewer_server import PROTOCOL
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from splatdistill.viewer import pages as module
from splatdistill.viewer.messages import Open, Split
from splatdistill.viewer.pages import Pages
from splatdistill.viewer.server import Address, start_server

OPEN = {"kind": "open", "name": "scan.ply", "bytes": 6}


class Place:
    """A server with pages, and what it has heard."""

    def __init__(self) -> None:
        self.heard, self.news = [], threading.Condition()
        self.server, self.address = start_server(Address(port=0))
        self.pages = Pages(self.hear)
        self.server.attach(self.pages)
        self.server.open()

    def hear(self, client: int, message, path: Path | None) -> None:
        content = None if path is None else path.read_bytes()
        with self.news:
            self.heard.append((client, message, content, path))
            self.news.notify_all()

    def wait_for(self, count: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: len(self.heard) >= count, 60)

    def url(self, ticket: str) -> str:
        return f"ws://127.0.0.1:{self.address.port}/page/{ticket}"


@pytest.fixture
def place():
    place = Place()
    yield place
    place.pages.close()
    place.server.stop()


def test_a_page_with_a_ticket_is_heard_and_told(place):
    with connect(place.url(place.pages.ticket(3))) as page:
        page.send('{"kind": "split", "share": 0.25}')
        place.wait_for(1)
        assert place.heard[0][:2] == (3, Split(0.25))
        place.pages.tell({"kind": "mouse"}, 4)
        place.pages.tell({"kind": "hello"}, 3)
        assert json.loads(page.recv(timeout=60)) == {"kind": "hello"}


def test_nobody_else_is_let_in(place):
    ticket = place.pages.ticket(1)
    refused = [
        (place.url(""), {}),
        (place.url("guessed"), {}),
        (place.url(ticket[:-1]), {}),
        (place.url(ticket), {"origin": Origin("http://evil.example")}),
        (place.url(ticket), {"additional_headers": {"Host": "evil.example"}}),
        (f"ws://127.0.0.1:{place.address.port}/{ticket}", {}),
    ]
    for url, options in refused:
        with pytest.raises(InvalidStatus, match="403"), connect(url, **options):
            pass
    with connect(place.url(ticket)), pytest.raises(InvalidStatus, match="403"):
        connect(place.url(ticket))  # one socket a ticket
    place.pages.forget(1)
    with pytest.raises(InvalidStatus, match="403"):
        connect(place.url(ticket))
    with connect(place.url("guessed"), subprotocols=[PROTOCOL]) as page, pytest.raises(ConnectionClosed):
        page.recv(timeout=60)  # viser's own protocol does not open our path


def test_nonsense_is_refused_and_the_page_goes_on(place):
    with connect(place.url(place.pages.ticket(0))) as page:
        for text in ("", "{", '{"kind": "open", "name": "/etc/passwd", "bytes": 3}', '{"kind": "split"}'):
            page.send(text)
            assert json.loads(page.recv(timeout=60))["kind"] == "refused"
        page.send('{"kind": "split", "share": 1}')
        place.wait_for(1)
    assert [row[1] for row in place.heard] == [Split(1.0)]


def test_a_message_that_is_too_long_ends_only_its_connection(place):
    with connect(place.url(place.pages.ticket(0))) as page, pytest.raises(ConnectionClosed):
        page.send("x" * 2**17)
        page.recv(timeout=60)
    with connect(place.url(place.pages.ticket(0))) as page:
        page.send('{"kind": "split", "share": 1}')
        place.wait_for(1)


def test_bytes_that_nobody_announced_end_the_connection(place):
    with connect(place.url(place.pages.ticket(0))) as page, pytest.raises(ConnectionClosed):
        page.send(b"123")
        page.recv(timeout=60)
    assert not place.heard


def test_a_file_comes_in_whole_under_a_name_of_ours(place):
    with connect(place.url(place.pages.ticket(0))) as page:
        page.send(json.dumps(OPEN | {"name": "../../a b\u202e.ply"}))
        assert json.loads(page.recv(timeout=60)) == {"kind": "ready"}
        page.send(b"123")
        page.send(b"456")
        place.wait_for(1)
    _, message, content, path = place.heard[0]
    assert isinstance(message, Open) and content == b"123456"
    assert path.parent == place.pages._folder and path.name.removesuffix(".ply").isalnum()


@pytest.mark.parametrize("parts", [[b"1234567"], [b"1234", b"567"], ["text"]])
def test_a_file_of_another_length_is_dropped(place, parts):
    with connect(place.url(place.pages.ticket(0))) as page:
        page.send(json.dumps(OPEN))
        assert json.loads(page.recv(timeout=60)) == {"kind": "ready"}
        for part in parts:
            page.send(part)
        assert json.loads(page.recv(timeout=60))["kind"] == "refused"
        page.send('{"kind": "split", "share": 1}')
        place.wait_for(1)
    assert [row[1] for row in place.heard] == [Split(1.0)]
    assert not list(place.pages._folder.iterdir())


def test_one_file_at_a_time_and_a_page_that_leaves_gives_the_place_free(place):
    with connect(place.url(place.pages.ticket(1))) as other:
        with connect(place.url(place.pages.ticket(0))) as page:
            page.send(json.dumps(OPEN))
            assert json.loads(page.recv(timeout=60)) == {"kind": "ready"}
            page.send(b"123")
            other.send(json.dumps(OPEN))
            assert "another file" in json.loads(other.recv(timeout=60))["why"]
        answer = {"kind": "refused"}
        while answer["kind"] == "refused":
            other.send(json.dumps(OPEN))
            answer = json.loads(other.recv(timeout=60))
        other.send(b"654321")
        place.wait_for(1)
    assert place.heard[0][2] == b"654321"


def test_a_file_that_does_not_come_is_given_up(place, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    with connect(place.url(place.pages.ticket(0))) as page:
        page.send(json.dumps(OPEN))
        assert json.loads(page.recv(timeout=60)) == {"kind": "ready"}
        with pytest.raises(ConnectionClosed):
            page.recv(timeout=60)
    assert not list(place.pages._folder.iterdir())


def test_a_file_for_which_there_is_no_room_is_refused(place, monkeypatch):
    monkeypatch.setattr(module, "ROOM", 1 << 60)
    with connect(place.url(place.pages.ticket(0))) as page:
        page.send(json.dumps(OPEN))
        assert "no room" in json.loads(page.recv(timeout=60))["why"]


def test_nothing_is_left_when_the_viewer_ends():
    place = Place()
    with connect(place.url(place.pages.ticket(0))) as page:
        page.send(json.dumps(OPEN))
        page.recv(timeout=60)
        place.pages.close()
        assert not place.pages._folder.exists()
    place.server.stop()
