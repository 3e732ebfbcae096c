"""Who is answered, and what they may say; on the loopback interface only."""

import asyncio
import http.client
import socket
import threading
from typing import Any

import msgspec
import pytest
import viser
from websockets import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from splatdistill.errors import UserError
from splatdistill.viewer.server import (
    Address,
    free_port,
    parse_address,
    refusal,
    start_server,
    understood,
    wake_from_any_thread,
)

PROTOCOL = Subprotocol(f"viser-v{viser.__version__}")
CAMERA = {
    "type": "ViewerCameraMessage",
    "wxyz": (1.0, 0.0, 0.0, 0.0),
    "position": (3.0, 0.0, 0.0),
    "fov": 0.8,
    "near": 0.01,
    "far": 100.0,
    "image_height": 120,
    "image_width": 160,
    "look_at": (0.0, 0.0, 0.0),
    "up_direction": (0.0, 0.0, 1.0),
}


@pytest.fixture(scope="module")
def port():
    server, address = start_server(Address(port=0))
    assert status_of(address.port) == 503  # its panels are not there yet
    server.open()
    yield address.port
    server.stop()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", ("127.0.0.1", 8080)),
        ("9000", ("127.0.0.1", 9000)),
        (":9000", ("127.0.0.1", 9000)),
        ("localhost:9000", ("127.0.0.1", 9000)),
        ("127.0.0.2:0", ("127.0.0.2", 0)),
        ("[::1]:9000", ("::1", 9000)),
    ],
)
def test_an_address_is_a_port_and_perhaps_a_host(text, expected):
    address = parse_address(text)
    assert (address.host, address.port) == expected and not address.remote


@pytest.mark.parametrize("text", ["x", "guidance.scale=3", "70000", "-1", "host.example:80", "127.0.0.1:"])
def test_what_is_no_address_is_one_clear_line(text):
    with pytest.raises(UserError, match="HOST"):
        parse_address(text, remote=True)


@pytest.mark.parametrize("text", ["0.0.0.0:8080", "[::]:8080", "192.168.1.5:8080"])
def test_other_machines_are_let_in_only_by_a_flag(text):
    with pytest.raises(UserError, match="--viewer-remote"):
        parse_address(text)
    assert parse_address(text, remote=True).remote


def test_the_address_can_be_typed_into_a_browser():
    assert Address("::1", 80).url == "http://[::1]:80"
    assert Address("0.0.0.0", 80, remote=True).url == f"http://{socket.gethostname()}:80"


def test_a_taken_port_leads_to_the_next():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) > port


def test_a_host_that_is_not_ours_is_a_clear_error():
    with pytest.raises(UserError, match=r"no viewer at 203\.0\.113\.1"):
        free_port("203.0.113.1", 8080)  # reserved for documentation


@pytest.mark.parametrize(
    "host, origin, remote, allowed",
    [
        ("127.0.0.1:8080", None, False, True),
        ("localhost:9999", "http://localhost:9999", False, True),  # by an ssh tunnel
        ("[::1]:8080", "http://[::1]:8080", False, True),
        ("127.0.0.1:8080", "http://127.0.0.1:8081", False, False),
        ("127.0.0.1:8080", "http://evil.example", False, False),
        ("127.0.0.1:8080", "null", False, False),
        ("evil.example:8080", "http://evil.example:8080", False, False),  # DNS rebinding
        ("evil.example:8080", "http://evil.example:8080", True, False),
        ("127.0.0.1.evil.example", None, False, False),
        ("192.168.1.5:8080", None, False, False),
        ("192.168.1.5:8080", "http://192.168.1.5:8080", True, True),
        ("[bad", None, True, False),
        ("", None, True, False),
    ],
)
def test_foreign_hosts_and_origins_are_refused(host, origin, remote, allowed):
    headers = Headers({"Host": host} | ({"Origin": origin} if origin else {}))
    assert (refusal(headers, remote) is None) == allowed


def test_two_hosts_or_origins_are_refused():
    headers = Headers([("Host", "127.0.0.1"), ("Host", "127.0.0.1")])
    assert refusal(headers, False)
    headers = Headers([("Host", "a"), ("Origin", "http://a"), ("Origin", "http://b")])
    assert refusal(headers, True)
    assert refusal(Headers(), False)


def status_of(port: int, **headers: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/", headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_page_is_served_to_its_own_address_only(port):
    assert status_of(port) == 200
    assert status_of(port, Origin=f"http://127.0.0.1:{port}") == 200
    assert status_of(port, Origin="http://evil.example") == 403
    assert status_of(port, Host="evil.example") == 403


def test_a_socket_is_opened_to_its_own_page_only(port):
    url = f"ws://127.0.0.1:{port}"
    with connect(url, origin=Origin(f"http://127.0.0.1:{port}"), subprotocols=[PROTOCOL]) as page:
        assert page.recv(timeout=60)
    refused: list[dict[str, Any]] = [
        {"origin": Origin("http://evil.example"), "subprotocols": [PROTOCOL]},
        {"additional_headers": {"Host": "evil.example"}, "subprotocols": [PROTOCOL]},
        {"subprotocols": [Subprotocol("viser-v0.0.0")]},
        {},
    ]
    for options in refused:
        with pytest.raises(InvalidStatus, match="403"), connect(url, **options):
            pass


def test_a_message_that_is_too_long_ends_only_its_connection(port):
    url = f"ws://127.0.0.1:{port}"
    with connect(url, subprotocols=[PROTOCOL]) as page, pytest.raises(ConnectionClosed):
        page.send(bytes(2**20))
        while True:
            page.recv(timeout=60)
    assert status_of(port) == 200


def test_no_answer_can_be_shown_in_a_frame_of_another_page(port):
    for path, headers in (("/", {}), ("/absent", {}), ("/", {"Host": "evil.example"})):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        assert answer.getheader("X-Frame-Options") == "DENY"
        assert answer.getheader("Content-Security-Policy") == "frame-ancestors 'none'"
        connection.close()


def test_a_name_that_is_not_the_hosts_is_told_what_to_type():
    reason = refusal(Headers({"Host": "render-box.example:8080"}), True)
    assert reason is not None and "IP address" in reason and socket.gethostname() in reason


@pytest.fixture(scope="module")
def gui():
    server, _ = start_server(Address(port=0))
    yield server.gui
    server.stop()


@pytest.mark.parametrize(
    "make, good, bad",
    [
        (
            lambda gui: gui.add_dropdown("it", (".ply", ".splat")),
            [".ply", ".splat"],
            ["../../x", ".exe", "", 3, None, [".ply"], True],
        ),
        (
            lambda gui: gui.add_slider("it", 0.5, 0.99, 0.01, 0.9),
            [0.5, 0.77, 0.99, 0.9900000001],
            [0.4, 1, -1e9, float("nan"), float("inf"), "0.7", [0.7], None, True],
        ),
        (lambda gui: gui.add_slider("it", 0, 3, 1, 1), [0, 3, 2.0], [4, -1, "1"]),
        (lambda gui: gui.add_number("it", 4.0, min=0.5, max=20.0), [0.5, 20], [0, 1e300, "4"]),
        (lambda gui: gui.add_checkbox("it", False), [True, False], [1, "yes", None, []]),
        (lambda gui: gui.add_button("it"), [True], [1, {"a": 1}]),
        (
            lambda gui: gui.add_rgb("it", (255, 255, 255)),
            [[0, 0, 0], [255, 1, 2]],
            [[0, 0], [256, 0, 0], [-1, 0, 0], ["a", 0, 0], 7, [0, 0, 0, 0]],
        ),
        (
            lambda gui: gui.add_vector2("it", (0.01, 100.0), min=(0.001, 0.002)),
            [[0.01, 50.0], [0.001, 1e4]],
            [[0.0, 1.0], [1.0, float("nan")], [1.0], "ab", None],
        ),
    ],
)
def test_a_control_takes_only_what_it_can_show(gui, make, good, bad):
    handle, raw = make(gui), b""
    for value, right in [*((value, True) for value in good), *((value, False) for value in bad)]:
        message = {"type": "GuiUpdateMessage", "uuid": handle._impl.uuid, "updates": {"value": value}}
        raw = msgspec.msgpack.encode(message)
        assert understood(raw, gui._gui_input_handle_from_uuid.get) == right, value
    handle.remove()
    assert not understood(raw, gui._gui_input_handle_from_uuid.get)


def test_only_cameras_commands_and_values_of_controls_are_understood():
    def packed(**changes) -> bytes:
        return msgspec.msgpack.encode(CAMERA | changes)

    assert understood(packed())
    assert understood(msgspec.msgpack.encode({"type": "CommandTriggerMessage", "uuid": "x"}))
    update = {"type": "GuiUpdateMessage", "uuid": "x", "updates": {"value": 1}}
    nonsense = [
        b"",
        b"\xff\x00random",
        b"\x91" * 5000,  # deep
        "text",
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode({"type": "ShareUrlRequest"}),
        msgspec.msgpack.encode({"type": "CommandTriggerMessage", "uuid": ["x"]}),
        msgspec.msgpack.encode(update),  # of a control that is none
        msgspec.msgpack.encode({"type": "FileTransferStartUpload"}),
        msgspec.msgpack.encode(update | {"updates": {"value": 1, "update_cb": []}}),
        msgspec.msgpack.encode({"type": "GuiUpdateMessage"}),
        packed(position=(float("nan"), 0.0, 0.0)),
        packed(position=(1.0, 0.0)),
        packed(wxyz=None),
        packed(fov="wide"),
        packed(image_height=10**9),
        packed(image_width=0),
    ]
    assert not any(understood(message) for message in nonsense)


def test_a_viser_that_passes_the_guard_by_is_not_started(monkeypatch):
    class Other:
        def __init__(self, *_, **__) -> None: ...

        def stop(self) -> None:
            stopped.append(self)

    stopped: list[Other] = []
    monkeypatch.setattr("splatdistill.viewer.server.Server", Other)
    with pytest.raises(UserError, match="cannot be guarded"):
        start_server(Address(port=0))
    assert len(stopped) == 1


def test_an_event_is_set_from_other_threads_in_its_loop():
    async def play() -> bool:
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        wake_from_any_thread(event, loop)
        setter = threading.Thread(target=lambda: event.set())
        setter.start()
        await event.wait()
        setter.join()
        return event.is_set()

    assert asyncio.run(play())
    event, loop = asyncio.Event(), asyncio.new_event_loop()
    wake_from_any_thread(event, loop)
    loop.close()
    event.set()  # too late, and no error
