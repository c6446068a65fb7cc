"""Object stores for tests: obstore's store in memory, or a server that speaks S3."""

import contextlib
import os
import re

import obstore
from obstore.store import MemoryStore

from paramdelta.storage import objects


class Buckets:
    """Stores in memory in place of all object stores; ``calls``: what was asked of them."""

    def __init__(self, patch):
        self.stores = {}
        patch.setattr(objects, "connect", self.connect)

    def connect(self, root):
        """The store of a bucket."""
        return self.stores.setdefault(root, MemoryStore())

    def upload(self, folder, url):
        """Copy a local folder to a URL; the URL."""
        root, path = objects.split(url)
        for file in folder.rglob("*"):
            if file.is_file():
                name = f"{path}/{file.relative_to(folder).as_posix()}"
                obstore.put(self.connect(root), name, file.read_bytes())
        return url

    def files(self, url):
        """All objects below a URL, hidden ones too: names and contents."""
        root, path = objects.split(url)
        store = self.connect(root)
        return {
            meta["path"][len(path) + 1 :]: bytes(obstore.get(store, meta["path"]).bytes())
            for page in obstore.list(store, path + "/")
            for meta in page
        }


def contents(folder):
    """All files of a local folder: names and contents. The recipe names its folders as one that is
    not on this machine does, without their paths.
    """
    found = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    if "recipe.yaml" in found:
        found["recipe.yaml"] = re.sub(rb"(?m)^([- ]*\w+: )\S*/", rb"\1", found["recipe.yaml"])
    return found


@contextlib.contextmanager
def s3_server(bucket="bkt"):
    """Moto's server with a bucket; the environment leads there. Yields a boto3 client."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "AKIAPLANTEDKEYID",
        "AWS_SECRET_ACCESS_KEY": "planted/secret/access/key",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        client = boto3.client(
            "s3", region_name="us-east-1", endpoint_url=settings["AWS_ENDPOINT_URL"]
        )
        client.create_bucket(Bucket=bucket)
        yield client
    finally:
        server.stop()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
