"""A blob: one file in a store. The only thing that identifies bytes outside `storage/`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Blob:
    """One file somewhere.

    ``url``: an absolute path on this machine, or a URL with a scheme. ``size``: bytes.
    ``version``: changes when the content changes: time of modification and inode, a commit, an
    ETag. ``outside``: a link in the folder that was listed leads to it, out of that folder.
    """

    url: str
    size: int
    version: str
    outside: bool = False

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The last part of the URL of the folder that holds it."""
        return self.url.rpartition("/")[0].rpartition("/")[2]
