"""Ranges of files behind HTTP(S): connections that stay open, retries, and strict answers.

The transport is `http.client`. It reads into the caller's memory and costs less processor time
than the alternatives (docs/streaming.md). A request is repeated until it succeeds or its
deadline passes; what came before a connection broke is kept. An answer is used only if it is the
range that was asked for, of a file of the expected size and with the ETag that was seen first.
"""

import email.utils
import http.client
import random
import re
import ssl
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.message import Message
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

from paramdelta.errors import CheckpointError, StorageError
from paramdelta.text import shown
from paramdelta.version import __version__

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SCHEMES = ("http", "https")
AGENT = f"paramdelta/{__version__}"
GRAIN = 4 << 20  # bytes: so small that many requests fit into the memory for reading ahead
IDLE = 60.0  # seconds without a byte until a connection counts as broken
PATIENCE = 120.0  # seconds in which a range must arrive …
SLOWEST = 16 << 10  # … and bytes a second that it may take longer for
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between two tries, doubled each time
LONGEST_ORDERED = 330.0  # seconds that a server may ask to wait; the Hub counts in 5 minutes
MOST_ORDERED = 6  # times that a server may ask so for one range
RENEWALS = 3  # times that the place of a file is asked for again for one range
REDIRECTS = 5
JOIN = 64 << 10  # bytes between two scattered parts that are read rather than asked around
AT_ONCE = 8  # requests for scattered parts
BODY = 4096  # bytes of an error's body that are looked at

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_GONE = (401, 403, 404, 410)  # what a signed address answers when it is no longer valid
AGAIN = (408, 425, 429, 500, 502, 503, 504)
_MOVED = (301, 302, 303, 307, 308)
_MESSAGE = re.compile(r'<Message>([^<]*)</Message>|"error"\s*:\s*"([^"\\]*)"')
_RESET = re.compile(r"\bt\s*=\s*(\d+)")  # of the header RateLimit: seconds until it starts anew


@dataclass(frozen=True)
class Target:
    """Where the ranges of a file are read. Address and headers may be secrets: never shown."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        parts = urlsplit(self.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return parts.scheme, parts.hostname or "", port

    @property
    def path(self) -> str:
        """Path and query, as they are sent."""
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


class RemoteFile:
    """A file behind HTTP. ``where``: its name in messages. ``find``: gives its place.

    ``size``: bytes. Many threads may use it. Its place is found once and kept until it expires;
    ``find`` is told how often that has happened, and raises `Again` or StorageError.
    """

    def __init__(self, where: str, size: int, find: Callable[[int], Target]) -> None:
        self.where = where
        self.size = size
        self._find = find
        self._target: Target | None = None
        self._expiries = 0
        self._etags: dict[str, str] = {}
        self._lock = threading.Lock()

    def target(self) -> Target:
        """Where it is; raises as ``find``."""
        with self._lock:
            if self._target is None:
                self._target = self._find(self._expiries)
            return self._target

    def expired(self, target: Target) -> None:
        """Forget a place that is no longer valid."""
        with self._lock:
            if self._target is target:
                self._target = None
                self._expiries += 1

    def moved(self, target: Target, location: str) -> None:
        """Follow a redirect; raises StorageError to another scheme."""
        there = _followed(self.where, target, location)
        with self._lock:
            if self._target is target:
                self._target = there

    def check(self, target: Target, etag: str | None) -> None:
        """Raise StorageError if the file is another one than before."""
        if etag is None:
            return
        with self._lock:
            known = self._etags.setdefault(target.origin[1], etag)
        if known != etag:
            raise changed(self.where, f"ETag {known}", f"ETag {etag}")


def changed(where: str, expected: str, got: str) -> StorageError:
    """The error for a file that is another one than the one that was listed."""
    return StorageError(
        "the file changed while it was in use",
        code="source-changed",
        where=where,
        expected=shown(expected),
        got=shown(got),
        remedy="run the command again; it plans with the file as it is now",
    )


class Again(Exception):
    """It did not work and is worth another try.

    ``done``: bytes that came. ``wait``: seconds that the server asks for. ``now``: without a pause.
    """

    def __init__(self, reason: str, wait: float | None = None, now: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.now, self.done = reason, wait, now, 0


class _Expired(Again):
    """The place of the file has to be found anew."""


class _Moved(Again):
    """The file is elsewhere, and its target says so now."""


class _Tries:
    """How often one range was tried, and how long that may go on."""

    def __init__(self, where: str, size: int) -> None:
        self.where = where
        self.deadline = time.monotonic() + PATIENCE + size / SLOWEST
        self.failures = self.ordered = self.renewals = self.redirects = 0

    def pause(self, again: Again) -> float:
        """Seconds until the next try; raises StorageError if there is none."""
        if again.done:
            self.failures = self.renewals = 0
        if isinstance(again, _Moved):
            self.redirects += 1
            if self.redirects > REDIRECTS:
                raise failed(self.where, "the server redirects without end")
            return 0.0
        if isinstance(again, _Expired):
            self.renewals += 1
            if self.renewals > RENEWALS:
                raise failed(self.where, again.reason)
            if self.renewals == 1:
                return 0.0
        if again.wait is not None:
            self.ordered += 1
            if self.ordered > MOST_ORDERED:
                raise failed(
                    self.where, again.reason, "wait some minutes: the limit is the server's"
                )
            wait = min(again.wait, LONGEST_ORDERED)
            self.deadline += wait
            return wait + random.uniform(0, FIRST_PAUSE + wait / 16)
        if again.now:
            return 0.0
        self.failures += 1
        if time.monotonic() > self.deadline:
            raise failed(self.where, again.reason)
        # "Full jitter": threads that failed together do not come back together.
        return random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self.failures, 16)))


class Transport:
    """Reads ranges through connections that stay open. Many threads may use it at once.

    ``requests`` and ``bytes``: sent, and received as bodies, so far.
    """

    def __init__(self) -> None:
        self.requests = self.bytes = 0
        self._idle: dict[tuple[str, str, int], list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._until = 0.0  # no request before this time: a server asked for a pause
        self._context: ssl.SSLContext | None = None
        self._proxies = urllib.request.getproxies()

    def read(self, file: RemoteFile, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes of a file from ``offset``.

        Raises:
            CheckpointError: the file ends before.
            StorageError: it changed, cannot be reached, or access is denied.
        """
        if offset + len(into) > file.size:
            raise CheckpointError(
                "the file ends too early",
                code="truncated-file",
                where=file.where,
                expected=f"at least {offset + len(into)} bytes",
                got=f"{file.size} bytes",
            )
        tries = _Tries(file.where, len(into))
        done = 0
        while done < len(into):
            self._wait(self._until - time.monotonic())
            target = None
            try:
                target = file.target()
                self._attempt(file, target, offset + done, into[done:], tries.deadline)
                return
            except Again as again:
                done += again.done
                if isinstance(again, _Expired) and target is not None:
                    file.expired(target)
                pause = tries.pause(again)
                if again.wait is not None:
                    with self._lock:  # the server's limit is one for all threads
                        self._until = max(self._until, time.monotonic() + again.wait)
                self._wait(pause)

    def head(self, where: str, target: Target) -> Message | None:
        """The headers of a file; None if there is no such file.

        Raises:
            StorageError: it cannot be reached, or access is denied.
        """
        tries = _Tries(where, 0)
        while True:
            connection, is_new = self._connect(target)
            sound = False
            try:
                with self._lock:
                    self.requests += 1
                headers = {"Accept-Encoding": "identity", "User-Agent": AGENT, **target.headers}
                connection.request("HEAD", self._path(target), headers=headers)
                with connection.getresponse() as response:
                    response.read()
                    status, answer = response.status, response.headers
                    sound = not response.will_close
                if status == 200:
                    return answer
                if status in (403, 404, 410):  # buckets answer 403 for what is not there
                    return None
                if status in _MOVED:
                    target = _followed(where, target, answer.get("Location") or "")
                    raise _Moved(f"HTTP {status}")
                if status in AGAIN:
                    raise Again(f"HTTP {status}", wait=ordered(status, answer))
                raise failed(where, f"HTTP {status}")
            except Again as again:
                self._wait(tries.pause(again))
            except (http.client.HTTPException, OSError) as error:
                self._wait(tries.pause(Again(_reason(error), now=not is_new)))
            finally:
                self._release(target, connection, sound)

    def read_many(
        self, file: RemoteFile, offsets: "npt.NDArray[np.int64]", into: memoryview
    ) -> None:
        """Fill ``into`` with parts of equal size, one from each offset; raises as `read`.

        Parts that are near each other are read with what is between them. Several requests are on
        their way at once.
        """
        size, places = len(into) // len(offsets), offsets.tolist()
        groups: list[list[int]] = []
        for number in sorted(range(len(places)), key=places.__getitem__):
            last = groups[-1] if groups else None
            if (
                last is not None
                and places[number] - places[last[-1]] - size <= JOIN
                and places[number] + size - places[last[0]] <= GRAIN
            ):
                last.append(number)
            else:
                groups.append([number])

        def read(group: list[int]) -> None:
            start = places[group[0]]
            data = memoryview(bytearray(places[group[-1]] + size - start))
            self.read(file, start, data)
            for number in group:
                at = places[number] - start
                into[number * size : (number + 1) * size] = data[at : at + size]

        if len(groups) == 1:
            read(groups[0])
            return
        with ThreadPoolExecutor(min(AT_ONCE, len(groups)), "paramdelta-ranges") as pool:
            for _ in pool.map(read, groups):
                pass

    def close(self) -> None:
        """Close all connections and end all pauses; reads that wait raise StorageError."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _wait(self, seconds: float) -> None:
        if self._closed.wait(seconds) if seconds > 0 else self._closed.is_set():
            raise StorageError("reading was stopped", code="stopped")

    def _attempt(
        self, file: RemoteFile, target: Target, offset: int, into: memoryview, deadline: float
    ) -> None:
        """One request: fill ``into``, or raise `Again`."""
        connection, is_new = self._connect(target)
        headers = {
            "Range": f"bytes={offset}-{offset + len(into) - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": AGENT,
            **target.headers,
        }
        proxy = self._proxy(*target.origin)
        if proxy is not None and target.origin[0] == "http":
            headers |= _password(proxy)
        done, sound = 0, False
        try:
            with self._lock:
                self.requests += 1
            connection.request("GET", self._path(target), headers=headers)
            response = connection.getresponse()
            with response:
                _check(file, target, response, offset, len(into))
                while done < len(into):
                    count = response.readinto(into[done:])
                    if count == 0:
                        raise Again("the answer ended too early")
                    done += count
                    if time.monotonic() > deadline and done < len(into):
                        raise failed(file.where, "the server sends too slowly")
            sound = not response.will_close
        except Again as again:
            again.done = done
            raise
        except (http.client.HTTPException, OSError) as error:
            # A server may close a connection that it kept open at any time.
            stale = not is_new and not done and not isinstance(error, TimeoutError)
            broken = Again(_reason(error), now=stale)
            broken.done = done
            raise broken from None
        finally:
            with self._lock:
                self.bytes += done
            self._release(target, connection, sound)

    # -- connections -------------------------------------------------------------------------------

    def _connect(self, target: Target) -> tuple[http.client.HTTPConnection, bool]:
        """A connection to a target's origin, and whether it is a new one."""
        with self._lock:
            idle = self._idle.get(target.origin)
            if idle:
                return idle.pop(), False
        scheme, host, port = target.origin
        proxy = self._proxy(scheme, host, port)
        if proxy is not None:
            return self._through(proxy, scheme, host, port), True
        if scheme == "https":
            return http.client.HTTPSConnection(
                host, port, timeout=IDLE, context=self._tls(), blocksize=1 << 20
            ), True
        return http.client.HTTPConnection(host, port, timeout=IDLE), True

    def _release(
        self, target: Target, connection: http.client.HTTPConnection, reusable: bool
    ) -> None:
        if reusable:
            with self._lock:
                if not self._closed.is_set():
                    self._idle.setdefault(target.origin, []).append(connection)
                    return
        connection.close()

    def _path(self, target: Target) -> str:
        scheme, host, port = target.origin
        if scheme == "http" and self._proxy(scheme, host, port) is not None:
            return target.url.partition("#")[0]  # what an HTTP proxy wants
        return target.path

    def _proxy(self, scheme: str, host: str, port: int) -> str | None:
        """The proxy that the environment names for a host (HTTPS_PROXY, NO_PROXY)."""
        proxy = self._proxies.get(scheme) or self._proxies.get("all")
        if not proxy or urllib.request.proxy_bypass(f"{host}:{port}"):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"

    def _through(self, proxy: str, scheme: str, host: str, port: int) -> http.client.HTTPConnection:
        parts = urlsplit(proxy)
        at = parts.hostname or "", parts.port or 8080
        if scheme == "http":
            return http.client.HTTPConnection(*at, timeout=IDLE)
        connection = http.client.HTTPSConnection(*at, timeout=IDLE, context=self._tls())
        connection.set_tunnel(host, port, _password(proxy))
        return connection

    def _tls(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = ssl.create_default_context()
                try:  # comes with huggingface_hub; some systems have no certificates of their own
                    import certifi
                except ImportError:
                    pass
                else:
                    self._context.load_verify_locations(certifi.where())
            return self._context


def _password(proxy: str) -> dict[str, str]:
    """The header for a proxy whose address has a password."""
    parts = urlsplit(proxy)
    if not parts.username:
        return {}
    given = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": "Basic " + b64encode(given.encode()).decode()}


def _check(
    file: RemoteFile,
    target: Target,
    response: http.client.HTTPResponse,
    offset: int,
    length: int,
) -> None:
    """Return if the body of an answer is the range that was asked for."""
    status = response.status
    if status in _MOVED:
        file.moved(target, response.getheader("Location") or "")
        raise _Moved(f"HTTP {status}")
    if status in AGAIN:
        raise Again(f"HTTP {status}{_said(response)}", wait=ordered(status, response.headers))
    if status in _GONE:
        raise _Expired(f"HTTP {status}{_said(response)}")
    if status == 416:
        raise changed(file.where, f"{file.size} bytes", "a shorter file")
    if status not in (200, 206):
        raise failed(file.where, f"HTTP {status}{_said(response)}")
    file.check(target, response.getheader("ETag"))
    if status == 200:
        if response.length not in (None, file.size):
            raise changed(file.where, f"{file.size} bytes", f"{response.length} bytes")
        if length < file.size:
            raise StorageError(
                "the server does not give ranges of files",
                code="no-ranges",
                where=file.where,
                expected="HTTP 206 for a request with Range",
                got="HTTP 200",
                remedy="download the files to a folder first",
            )
        return
    given = response.getheader("Content-Range") or ""
    match = _RANGE.fullmatch(given)
    if match is not None and match[3] not in ("*", str(file.size)):
        raise changed(file.where, f"{file.size} bytes", f"{match[3]} bytes")
    if match is None or (int(match[1]), int(match[2])) != (offset, offset + length - 1):
        raise Again(f"the answer is another range: {shown(given, 60) or 'none'}")
    if response.length not in (None, length):
        raise Again(f"{response.length} bytes for a range of {length}")


def _followed(where: str, target: Target, location: str) -> Target:
    """Where a redirect leads. Headers, which may hold a token, stay with their origin.

    Raises:
        StorageError: to another scheme.
    """
    there = Target(urljoin(target.url, location))
    if there.origin[0] != target.origin[0] or not there.origin[1]:
        raise StorageError(
            "the server redirects to another kind of address",
            code="bad-redirect",
            where=where,
            expected=f"{target.origin[0]}://",
            got=shown(f"{there.origin[0]}://{there.origin[1]}"),
        )
    return Target(there.url, target.headers) if there.origin == target.origin else there


def ordered(status: int, headers: Message | Mapping[str, str]) -> float | None:
    """Seconds that an answer asks to wait, by ``Retry-After`` or ``RateLimit``; None if it does not
    ask.
    """
    given = (headers.get("Retry-After") or "").strip()
    if given.isdigit():
        return float(given)
    if given:
        try:
            when = email.utils.parsedate_to_datetime(given).timestamp()
        except ValueError:
            pass
        else:
            return max(0.0, when - time.time())
    match = _RESET.search(headers.get("RateLimit") or "")
    return float(match[1]) if match and status == 429 else None


def _said(response: http.client.HTTPResponse) -> str:
    """The reason that a server gives in words.

    Nothing else of an answer is shown: S3 repeats signatures in the bodies of its errors.
    """
    text = response.getheader("X-Error-Message")
    if text is None:
        try:
            body = response.read(BODY).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            body = ""
        match = _MESSAGE.search(body)
        text = match[1] or match[2] if match else ""
    text = re.sub(r"\S*(://|=)\S*", "…", text)
    return f": {shown(text, 160)}" if text else ""


def _reason(error: Exception) -> str:
    """An error of the network in words; never with an address."""
    if isinstance(error, TimeoutError):
        return f"no answer for {IDLE:g} s"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason}"
    return getattr(error, "strerror", None) or type(error).__name__


def failed(where: str, got: str, remedy: str | None = None) -> StorageError:
    """The error for a file that cannot be read."""
    return StorageError(
        "the file cannot be read",
        code="download-failed",
        where=where,
        got=got,
        remedy=remedy or "check the network; the same command continues",
    )
