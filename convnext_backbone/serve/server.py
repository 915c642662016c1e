"""Speaks HTTP: a few fixed routes, limits of what is sent, refusals in a sentence."""

import base64
import contextlib
import hashlib
import ipaddress
import json
import re
import socket
import socketserver
import threading
import time
import traceback
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from .. import html
from ..errors import UserError
from .answers import Answers, Refused

FOLDER = Path(__file__).parent
CONNECTIONS = 64  # at a time
SILENCE = 30  # seconds after which a client that sends nothing is given up
MOST_SECONDS = 300  # for an image to arrive
JSON = 'application/json'


class Server(ThreadingHTTPServer):
    """Listens at an address; :attr:`answers` is set before ``serve_forever`` is called.

    Args:
        host: name or address of this machine.
        port: 0 for one that is free.

    ``url`` is where the page is. At a loopback address only requests that name this machine are answered, so
    that pages of other sites cannot read from here by a name of theirs (DNS rebinding).

    Raises:
        UserError: the port is taken, or the host is not this machine.
    """

    daemon_threads = True
    answers: Answers

    def __init__(self, host: str, port: int):
        self.page, self.policy = page()
        self._connections = threading.BoundedSemaphore(CONNECTIONS)
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__(address, Handler)
        except socket.gaierror as error:
            raise UserError(
                f'--host {host} is no name or address ({error.strerror}): leave it out, or give one of this '
                'machine, such as 0.0.0.0 for all of its networks'
            ) from error
        except OSError as error:
            raise UserError(
                f'port {port} of {host} cannot be taken ({error.strerror}): give another one by --port, or '
                '--port 0 for one that is free'
            ) from error
        bound, self.port = self.server_address[:2]
        self.is_local = ipaddress.ip_address(bound).is_loopback
        self.names = {'localhost', '127.0.0.1', '::1', bound, host.lower()} if self.is_local else None
        shown = 'localhost' if ipaddress.ip_address(bound).is_unspecified else host
        self.url = f'http://{f"[{shown}]" if ":" in shown else shown}:{self.port}/'

    def server_bind(self) -> None:
        """Bind without asking the network for the name of this machine."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request, client_address) -> None:
        """Give a connection a thread of its own, unless there are too many."""
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address) -> None:
        """Answer a connection, and count it."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request, client_address) -> None:
        """Print what is not a client that went away."""
        with contextlib.suppress(OSError):  # a connection that ended
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers one request, then closes the connection."""

    protocol_version = 'HTTP/1.1'
    server_version, sys_version = 'convnext', ''
    timeout = SILENCE
    server: Server

    def do_GET(self) -> None:
        """Answer for the page and what is known about the model."""
        routes = {'/': self._page, '/model': self._facts, '/health': self._health}
        self._route(routes)

    def do_POST(self) -> None:
        """Predict on the image that is sent."""
        self._route({'/predict': self._predict})

    def _route(self, routes: dict) -> None:
        self.close_connection = True
        try:
            self._check_origin()
            path = self.path.partition('?')[0]
            if path not in routes:
                known = 'GET /, GET /model, GET /health and POST /predict'
                raise Refused(404, f'There is no {self.command} {path} here, but {known}.')
            routes[path]()
        except Refused as refused:
            self._refuse(refused)
        except (ConnectionError, TimeoutError):  # it went away
            return
        except Exception as error:
            traceback.print_exc()
            self._refuse(Refused(500, f'The server failed: {type(error).__name__}.'))

    def _check_origin(self) -> None:
        """Raise :class:`Refused` for a request by a page of another site, or to another name than ours."""
        host, origin = self.headers.get('Host', ''), self.headers.get('Origin')
        if self.server.names is not None and _name(host) not in self.server.names:
            raise Refused(403, f'This server answers at {self.server.url}, not under the name {host!r}.')
        if origin is not None and origin.partition('://')[2] != host:
            raise Refused(403, f'Pages of {origin} may not use this server.')

    def _page(self) -> None:
        policy = {'Content-Security-Policy': self.server.policy}
        self._send(200, 'text/html; charset=utf-8', self.server.page, policy)

    def _facts(self) -> None:
        self._send(200, JSON, json.dumps(self.server.answers.facts).encode())

    def _health(self) -> None:
        self._send(200, JSON, b'{"status": "ok"}')

    def _predict(self) -> None:
        options = self._options()
        with self.server.answers.place():
            self._send(200, JSON, self.server.answers.predict(self._body(), **options))

    def _options(self) -> dict:
        """Return what stands behind the question mark.

        Raises:
            Refused: there is something else, or it has another value than it can have.
        """
        with contextlib.suppress(ValueError):
            given = parse_qs(self.path.partition('?')[2], keep_blank_values=True, max_num_fields=8)
            options = {name: values[-1] for name, values in given.items()}
            score = float(options.pop('score')) if 'score' in options else None
            flags = dict(numbers=options.pop('map', '0'), picture=options.pop('picture', '0'))
            if not options and (score is None or 0 <= score <= 1) and set(flags.values()) <= {'0', '1'}:
                return dict(score=score, **{name: value == '1' for name, value in flags.items()})
        raise Refused(400, 'Behind the question mark there may be score (0 to 1), map=1 and picture=1.')

    def _body(self) -> bytes:
        """Return the image that is sent.

        Raises:
            Refused: its length is not said or too large, it is empty, or it does not arrive.
        """
        length = self._length()
        if self.headers.get('Expect', '').lower() == '100-continue':
            self.send_response_only(100)
            self.end_headers()
        parts, missing, end = [], length, time.monotonic() + MOST_SECONDS
        try:
            while missing and time.monotonic() < end and (part := self.rfile.read1(min(missing, 2**20))):
                parts.append(part)
                missing -= len(part)
        except TimeoutError:
            end = 0
        if missing and time.monotonic() >= end:
            raise Refused(408, f'The image did not arrive in time: {missing} bytes missing.')
        if missing:
            raise Refused(400, f'The image was not sent to its end: {missing} bytes missing.')
        return b''.join(parts)

    def _length(self) -> int:
        """Return the number of bytes that are to come."""
        lengths, most = self.headers.get_all('Content-Length', []), self.server.answers.most_bytes
        if 'Transfer-Encoding' in self.headers or not lengths:
            raise Refused(411, 'The request must say by Content-Length how long the image is.')
        if len(lengths) > 1 or not re.fullmatch('[0-9]{1,18}', lengths[0]):
            raise Refused(400, 'Content-Length must be one number of bytes.')
        if not (length := int(lengths[0])):
            raise Refused(400, 'The request has no image: send the content of a file as its body.')
        if length > most:
            sizes = f'{length / 2**20:.1f} MB, more than the {most / 2**20:g} MB'
            raise Refused(413, f'The file has {sizes} that this server takes.')
        return length

    def _refuse(self, refused: Refused) -> None:
        busy = refused.status == 503
        content = json.dumps(dict(error=refused.text)).encode()
        with contextlib.suppress(OSError):
            self._send(refused.status, JSON, content, {'Retry-After': '2'} if busy else {})
            self._drain()

    def _drain(self) -> None:
        """Read what is still sent, for a moment: who cannot send on may not read the answer."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1)
        end = time.monotonic() + 10
        while time.monotonic() < end and self.connection.recv(2**16):
            pass

    def _send(self, status: int, kind: str, content: bytes, headers: dict | None = None) -> None:
        self.send_response(status)
        common = {
            'Content-Type': kind,
            'Content-Length': str(len(content)),
            'Connection': 'close',
            'Cache-Control': 'no-store',
            'X-Content-Type-Options': 'nosniff',
            'Referrer-Policy': 'no-referrer',
            'Cross-Origin-Resource-Policy': 'same-origin',
        }
        for name, value in {**common, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        for begin in range(0, len(content), 2**16):  # the time limit is that of a write
            self.wfile.write(content[begin : begin + 2**16])

    def handle_expect_100(self) -> bool:
        """Wait with the permission to send until the request was looked at."""
        return True

    def send_error(self, code, message=None, explain=None) -> None:
        """Answer in JSON where the request itself is malformed, or of a method that is not known."""
        self.close_connection, self.request_version = True, self.protocol_version
        self._refuse(Refused(code, f'The request cannot be answered: {message or HTTPStatus(code).phrase}.'))

    def log_message(self, format, *arguments) -> None:
        """Keep quiet: the terminal shows what fails, nothing else."""


def _name(host: str) -> str:
    """Return the name in a Host header, in lower case and without the port; empty for nonsense."""
    with contextlib.suppress(ValueError):
        return urlsplit(f'//{host}').hostname or ''
    return ''


def page() -> tuple[bytes, str]:
    """Return the page, and the policy by which a browser keeps it from everything but this server."""
    style = html.STYLE + (FOLDER / 'page.css').read_text('utf-8')
    script = (FOLDER / 'page.js').read_text('utf-8')
    text = (FOLDER / 'page.html').read_text('utf-8').replace('{style}', style).replace('{script}', script)
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; connect-src 'self'; "
        "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
