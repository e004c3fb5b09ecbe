"""The server of the page, on the loopback unless told otherwise; it keeps nothing and logs nothing of what is asked."""

import errno
import ipaddress
import json
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any, NoReturn
from urllib.parse import parse_qs, urlsplit

import artkv.report
from artkv.errors import UserError
from artkv.serve.asking import MAX_UPLOAD_BYTES, AskedModel
from artkv.serve.turns import Busy, Turns

# Beside the one that is being answered; each may hold an upload of the largest size.
WAITING = 3
_SECONDS_FOR_UPLOAD = 120.0
_SECONDS_FOR_LAST_REPLIES = 2.0
_CHUNK = 2**16

_FOLDER = Path(__file__).parent
# The page looks as the report does, and adds a style of its own.
_FILES = {
    "/": ("text/html", [_FOLDER / "page.html"]),
    "/page.css": ("text/css", [Path(artkv.report.__file__).parent / "page.css", _FOLDER / "page.css"]),
    "/page.js": ("text/javascript", [_FOLDER / "page.js"]),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class _Refused(Exception):
    """A request that the page would not have made."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Listens from the start; answers once it is told to `serve`. A context: at its end it listens no more."""

    daemon_threads = True  # a browser's idle connection must not keep the process
    model: AskedModel

    def __init__(self, host: str, port: int) -> None:
        """port: 0 for any that is free. Raises `UserError` if that cannot be listened on."""
        self.turns = Turns(WAITING)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            self.address_family = found[0][0]
            super().__init__((str(found[0][4][0]), port), _Handler)
        except (socket.gaierror, UnicodeError) as error:  # the latter for what no name of a host can be
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"--host {host:.300}: is no address ({reason}); give one of this machine") from None
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
                raise UserError(
                    f"--host {host:.300}: is no address of this machine; give 127.0.0.1, or one it has"
                ) from None
            raise UserError(
                f"--host {host} --port {port}: cannot be listened on ({reason}); give another --port, or 0 for any "
                "that is free"
            ) from None

    @property
    def is_loopback(self) -> bool:
        """Whether none but this machine can reach it."""
        return ipaddress.ip_address(str(self.server_address[0])).is_loopback

    @property
    def url(self) -> str:
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def serve(self, model: AskedModel) -> NoReturn:
        """Answers, the model's work done by the calling thread, until a signal's exception ends it."""
        self.model = model
        threading.Thread(target=self.serve_forever, daemon=True).start()
        try:
            self.turns.work()
        finally:
            self.shutdown()
            self.turns.wait_for_replies(_SECONDS_FOR_LAST_REPLIES)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own asks the network for the host's full name

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone: nothing to tell, and nobody to tell it to."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version, sys_version = "artkv", ""
    timeout = 30  # seconds of silence after which a connection is closed

    def do_GET(self) -> None:
        self._answer_with(self._get)

    def do_POST(self) -> None:
        self._answer_with(self._ask)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nobody's questions are written down."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """For what http.server itself refuses."""
        self._send_json({"error": message or HTTPStatus(code).phrase}, code)

    def _answer_with(self, handle: Callable[[], None]) -> None:
        try:
            self._check_origin()
            handle()
        except UserError as error:
            self._send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except Busy as error:
            self._send_json({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)
        except _Refused as error:
            self._send_json({"error": str(error)}, error.status)
        except (ConnectionError, TimeoutError):
            raise
        except Exception:
            traceback.print_exc()
            message = "the model failed at this; the reason is printed where artkv serve was started"
            self._send_json({"error": message}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _check_origin(self) -> None:
        """Refuses what another site's page has a browser send here, under this server's name or its own."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if self.server.is_loopback and not _is_loopback_name(host):
            raise _Refused(HTTPStatus.FORBIDDEN, "this page is at 127.0.0.1 or localhost, and has no other name")
        if origin is not None and origin != f"http://{host}":
            raise _Refused(HTTPStatus.FORBIDDEN, "other sites may not ask here")

    def _get(self) -> None:
        path = urlsplit(self.path).path
        if path == "/model":
            self._send_json(asdict(self.server.model.facts()), HTTPStatus.OK)
        elif path in _FILES:
            kind, files = _FILES[path]
            self._send(b"".join(file.read_bytes() for file in files), f"{kind}; charset=utf-8", HTTPStatus.OK)
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _ask(self) -> None:
        address = urlsplit(self.path)
        if address.path != "/ask":
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        question = parse_qs(address.query, keep_blank_values=True).get("question", [""])[0]
        upload = self._upload(self._upload_bytes())
        try:
            with self.server.turns.seat():
                picture = b"".join(upload)
                model = self.server.model
                reply = self.server.turns.do(lambda: model.reply(picture, question))
                self._send_json(asdict(reply), HTTPStatus.OK)
        except Busy:
            for _ in upload:  # a browser reads no reply before it has sent all
                pass
            raise

    def _upload_bytes(self) -> int:
        text = self.headers.get("Content-Length", "")
        if not text.isdecimal():
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "the upload does not say how long it is")
        if int(text) > MAX_UPLOAD_BYTES:
            raise _Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the file has {int(text) / 2**20:.1f} MiB, of {MAX_UPLOAD_BYTES / 2**20:.0f} at most; scale it down",
            )
        return int(text)

    def _upload(self, num_bytes: int) -> Iterator[bytes]:
        """The upload, piece by piece; `_Refused` if it takes too long."""
        latest = time.monotonic() + _SECONDS_FOR_UPLOAD
        while num_bytes > 0:
            if time.monotonic() > latest:
                raise _Refused(HTTPStatus.REQUEST_TIMEOUT, f"the upload took over {_SECONDS_FOR_UPLOAD:.0f} seconds")
            piece = self.rfile.read1(min(num_bytes, _CHUNK))  # type: ignore[attr-defined]
            if not piece:
                raise ConnectionAbortedError
            num_bytes -= len(piece)
            yield piece

    def _send_json(self, tree: object, status: int) -> None:
        self._send(json.dumps(tree).encode("ascii"), "application/json", status)

    def _send(self, content: bytes, kind: str, status: int) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine to itself, by whatever port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
