"""A plain dtype: one stream, each number rounded once."""

from dataclasses import dataclass

from paramdelta.encodings.encoding import Encoding, Stream
from paramdelta.formats.view import View


@dataclass(frozen=True)
class Plain(Encoding):
    """Numbers of a safetensors dtype."""

    dtype: str

    @property
    def work(self) -> str:
        """The dtype itself: schemes round into it."""
        return self.dtype

    def streams(self, name: str, shape: tuple[int, ...]) -> tuple[Stream, ...]:
        """See `Encoding.streams`."""
        return (Stream(name, self.dtype, shape),)

    def stored(self, view: View) -> tuple[View, ...] | None:
        """A view of the same dtype."""
        return (view,) if view.dtype == self.dtype else None
