"""What the server answers over HTTP, to the page and to others, and how its process begins and ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import artkv.cli as cli
from artkv.errors import UserError
from artkv.serve.asking import MAX_UPLOAD_BYTES, AskedModel, Column, Facts, Reply
from artkv.serve.server import WAITING, PageServer
from tests.serve.conftest import Serve


class Parrot:
    """Stands for a model: says the question back once it may. A picture of the word `fail` is its end."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.begun: list[str] = []

    def facts(self) -> Facts:
        return Facts("parrot", has_prefix=False)

    def reply(self, content: bytes, question: str) -> Reply:
        self.begun.append(question)
        assert self.may_answer.wait(30)
        if content == b"fail":
            raise RuntimeError("in /home/somebody/secret.py")
        if content == b"wrong":
            raise UserError("picture as uploaded: damaged; replace the file with an undamaged copy")
        return Reply(question, "data:,", [Column("no prefix", question, 0.5, 0.5, f"{len(content)} bytes")])


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def server(parrot: Any, serve: Serve) -> PageServer:
    return serve(parrot)


def send(
    server: PageServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """(status, what was sent, headers); names of headers with _ for -."""
    host, port = server.server_address[:2]
    with closing(HTTPConnection(host, port, timeout=60)) as connection:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        content = response.read()
        is_json = response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(content) if is_json else content.decode(), dict(response.headers)


def ask(server: PageServer, question: str, picture: bytes = b"picture", **headers: str) -> tuple[int, Any]:
    return send(server, "POST", f"/ask?question={quote(question)}", picture, **headers)[:2]


def test_the_page_loads_nothing_but_what_is_served_beside_it(server: PageServer) -> None:
    texts = {}
    for path, kind in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]:
        status, texts[path], headers = send(server, "GET", path)
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Python" not in headers["Server"]
    assert re.findall(r'(?:href|src)="([^"]+)"', texts["/"]) == ["data:,", "/page.css", "/page.js"]
    assert not any("http:" in text or "https:" in text or "url(" in text for text in texts.values())
    assert send(server, "GET", "/model")[1]["name"] == "parrot"
    assert send(server, "GET", "/../../etc/passwd")[:2] == (404, {"error": "there is no such page"})
    assert send(server, "POST", "/", b"")[0] == 404
    assert send(server, "DELETE", "/ask")[0] == 501


def test_any_text_can_be_asked_and_comes_back_as_it_is(server: PageServer) -> None:
    for question in [
        '</script><script>alert("1")</script>',
        "Wer hat das gemalt? 画家は誰ですか 🎨",
        "a&b=c+d%20\0 ; \n{}",
    ]:
        status, told = ask(server, question, b"12345")
        assert (status, told["question"], told["columns"][0]["map"]) == (200, question, "5 bytes")


def test_wrong_input_is_a_message_and_a_failure_tells_nothing_of_the_server(
    server: PageServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(server, "What?", b"wrong") == (
        400, {"error": "picture as uploaded: damaged; replace the file with an undamaged copy"},
    )  # fmt: skip
    status, told = ask(server, "What?", b"fail")
    assert status == 500
    assert told == {"error": "the model failed at this; the reason is printed where artkv serve was started"}
    assert "RuntimeError: in /home/somebody/secret.py" in capsys.readouterr().err
    assert ask(server, "What?")[0] == 200  # goes on
    assert capsys.readouterr().err == ""  # no log of who asked what


def test_too_large_an_upload_is_refused_unread(server: PageServer, parrot: Parrot) -> None:
    host, port = server.server_address[:2]
    for length, status, message in [
        (str(MAX_UPLOAD_BYTES + 1), 413, "the file has 64.0 MiB, of 64 at most; scale it down"),
        ("", 411, "the upload does not say how long it is"),
        ("-1", 411, "the upload does not say how long it is"),
    ]:
        with closing(HTTPConnection(host, port, timeout=60)) as connection:
            connection.putrequest("POST", "/ask?question=What")
            if length:
                connection.putheader("Content-Length", length)
            connection.endheaders()
            response = connection.getresponse()
            assert (response.status, json.loads(response.read())) == (status, {"error": message})
    assert parrot.begun == []


@contextmanager
def asking(server: PageServer, questions: list[str], parrot: Parrot) -> Iterator[dict[str, Any]]:
    """Has each asked by a thread of its own, the first of them begun; the replies are there at the end."""
    replies: dict[str, Any] = {}

    def keep(question: str) -> None:
        replies[question] = ask(server, question)

    threads = [threading.Thread(target=keep, args=[question], daemon=True) for question in questions]
    parrot.may_answer.clear()
    for number, thread in enumerate(threads):
        thread.start()
        while not parrot.begun or server.turns._asked.qsize() < number:
            thread.join(0.005)
            assert thread.is_alive()
    yield replies
    for thread in threads:
        thread.join(30)


def test_a_second_question_waits_for_the_first_and_too_many_are_told_so(server: PageServer, parrot: Parrot) -> None:
    questions = [f"question {number}" for number in range(1 + WAITING)]
    with asking(server, questions, parrot) as replies:
        assert (parrot.begun, replies) == (["question 0"], {})
        # The message is read though all of a large upload is to be sent before.
        status, told = ask(server, "one more", b"x" * (8 * 2**20))
        assert status == 503
        assert told["error"] == "busy: 4 questions are being answered or wait already; ask again in a while"
        assert send(server, "GET", "/")[0] == 200  # the page itself has no queue
        parrot.may_answer.set()
    assert parrot.begun == questions
    assert [replies[question][1]["question"] for question in questions] == questions
    assert ask(server, "one more")[0] == 200


def test_who_goes_away_in_the_middle_of_an_upload_leaves_the_seat(
    server: PageServer, parrot: Parrot, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2 * WAITING):
        with socket.create_connection(server.server_address[:2]) as connection:
            connection.sendall(
                b"POST /ask?question=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nonly this"
            )
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
    assert ask(server, "What?")[0] == 200
    assert parrot.begun == ["What?"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "painter.example"},  # whose address was changed to this one
        {"Host": "localhost.painter.example:7860"},
        {"Host": "[::1"},
        {"Host": "10.0.0.1"},
        {"Origin": "https://painter.example"},
        {"Origin": "null"},
        {"Host": "localhost:1", "Origin": "http://localhost:2"},
    ],
)
def test_other_sites_cannot_have_a_browser_ask(headers: dict[str, str], server: PageServer, parrot: Parrot) -> None:
    assert ask(server, "What?", **headers)[0] == 403
    assert parrot.begun == []


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:9000"])
def test_a_forwarded_port_is_no_other_site(host: str, server: PageServer) -> None:
    assert ask(server, "What?", Host=host, Origin=f"http://{host}")[0] == 200


def test_none_but_this_machine_reaches_it_unless_told_so(parrot: Any) -> None:
    with PageServer("127.0.0.1", 0) as server:
        assert server.is_loopback
        assert server.url == f"http://127.0.0.1:{server.server_address[1]}"
    with PageServer("0.0.0.0", 0) as server:
        assert not server.is_loopback
    assert cli.parse_arguments(["serve", "--checkpoint", "x"]).host == "127.0.0.1"


def test_a_port_that_is_taken_or_none_and_an_unknown_host_are_one_message(
    trained_run: Path, free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = ["serve", "--checkpoint", str(trained_run)]
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        with socket.create_server(("127.0.0.1", free_port)):
            assert cli.main([*serve, "--port", str(free_port)]) == 1
        error = capsys.readouterr().err
        assert f"artkv: --host 127.0.0.1 --port {free_port}: cannot be listened on (Address already in use)" in error
        assert "give another --port, or 0 for any that is free" in error
        assert cli.main([*serve, "--host", "256.1.1.1"]) == 1
        assert "artkv: --host 256.1.1.1: is no address" in capsys.readouterr().err
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_process_answers_as_ask_does_and_a_signal_ends_it_with_0(
    ending: signal.Signals, trained_run: Path, tiny_world: Path, asked_model: AskedModel
) -> None:
    command = [sys.executable, "-m", "artkv", "serve", "--checkpoint", str(trained_run / "best"), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.fullmatch(r"artkv: serves http://127\.0\.0\.1:(\d+); Ctrl-C ends it\n", line)
        assert address is not None, line
        path = tiny_world / "images" / "val0.png"
        with closing(HTTPConnection("127.0.0.1", int(address[1]), timeout=60)) as connection:
            connection.request("POST", "/ask?question=What%20is%20thing%200%3F", path.read_bytes())
            told = json.loads(connection.getresponse().read())
        idle = socket.create_connection(("127.0.0.1", int(address[1])))  # as browsers keep
        process.send_signal(ending)
        out, error = process.communicate(timeout=60)
        idle.close()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, error
    assert out == ""
    assert "Traceback" not in error
    # This process's session gives what artkv ask prints; the page has both ways in one batch, in fp32.
    session = asked_model.session
    for column, use_prefix in zip(told["columns"], (True, False), strict=True):
        (answer,) = session.answers(path, ["What is thing 0?"], use_prefix)
        assert column["answer"] == answer.text
        assert column["probability"] == pytest.approx(answer.probability, rel=3e-5)
