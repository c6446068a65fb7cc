"""Object stores on this machine: moto's S3 with a count of what it sends, and azurite.

    python -m benchmarks.servers s3 PORT

serves S3; each is a process of its own, so its memory is not that of the client.
"""

import base64
import contextlib
import email.utils
import hashlib
import hmac
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

# The key of Azure's emulators, which is public.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
SECRET = "planted+secret/access+key"  # it must not be found anywhere afterwards


def serve_s3(port: int) -> None:
    """Serve S3 for ever. ``/-counts`` gives the bytes sent for each object of a bucket."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    sent: Counter[str] = Counter()

    def application(environment: dict, start: Callable) -> object:
        path = environment["PATH_INFO"]
        if path == "/-counts":
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(sent).encode()]

        def counting(status: str, headers: list, *rest: object) -> object:
            if environment["REQUEST_METHOD"] == "GET" and status[:2] == "20":
                sent[path] += int(dict(headers).get("Content-Length", 0))
            return start(status, headers, *rest)

        return moto(environment, counting)

    make_server("127.0.0.1", port, application, threaded=True).serve_forever()


@contextlib.contextmanager
def s3(bucket: str) -> Iterator[dict[str, str]]:
    """Run the server with a bucket; the environment for its clients."""
    port = _free_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEYID",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    with _running([sys.executable, "-m", "benchmarks.servers", "s3", str(port)], port):
        with _environment(environment):
            import boto3

            boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"]).create_bucket(
                Bucket=bucket
            )
        yield environment


def counts(environment: dict[str, str]) -> dict[str, int]:
    """Bytes that the server sent so far, by path."""
    with urllib.request.urlopen(environment["AWS_ENDPOINT_URL"] + "/-counts") as answer:
        return json.load(answer)


def azurite() -> str | None:
    """The program, from npm; AZURITE names another place than the PATH."""
    return os.environ.get("AZURITE") or shutil.which("azurite-blob")


@contextlib.contextmanager
def azure(container: str, folder: Path) -> Iterator[dict[str, str]]:
    """Run azurite with a container; the environment for its clients."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}/{ACCOUNT}"
    environment = {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_STORAGE_ENDPOINT": url,
    }
    command = [str(azurite()), "--silent", "--skipApiVersionCheck", "--location", str(folder)]
    with _running([*command, "--blobPort", str(port), "--blobHost", "127.0.0.1"], port):
        date = email.utils.formatdate(usegmt=True)
        text = (
            f"PUT\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:{date}\nx-ms-version:2021-12-02\n"
            f"/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container"
        )
        signed = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
        headers = {
            "x-ms-date": date,
            "x-ms-version": "2021-12-02",
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}",
            "Content-Length": "0",
        }
        request = urllib.request.Request(
            f"{url}/{container}?restype=container", method="PUT", headers=headers
        )
        urllib.request.urlopen(request).close()
        yield environment


@contextlib.contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > end or server.poll() is not None:
                    raise
                time.sleep(0.2)
        yield
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    serve_s3(int(sys.argv[2]))
