"""The reading side of HTTP/1.1: bytes as they come, until one reply is whole. No I/O."""

from __future__ import annotations

from typing import Literal

__all__ = ["ReplyParser", "WireError"]

_LONGEST_HEAD = 1 << 17
_LONGEST_BODY = 1 << 30


class WireError(Exception):
    """What came is no HTTP/1.1 reply, or not a whole one."""


class ReplyParser:
    """Takes bytes; says when a reply is whole.

    Attributes:
        status: of the status line; 0 before it came.
        headers: (name, value) as they came.
        body: so far.
        kept: whether the connection may be used again; known once the reply is whole.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.kept = False
        self._buffer = bytearray()
        self._mode: Literal["head", "length", "chunks", "close", "whole"] = "head"
        self._missing = 0  # bytes of the body, or of the chunk with its line end
        self._persistent = True

    def feed(self, data: bytes) -> bool:
        """Whether the reply is whole now.

        Raises:
            WireError: these bytes are no HTTP/1.1.
        """
        self._buffer += data
        if self._mode == "head":
            self._read_heads()
        if self._mode == "length":
            self._read_length()
        elif self._mode == "chunks":
            self._read_chunks()
        elif self._mode == "close":
            self.body += self._buffer
            self._buffer.clear()
        if len(self.body) > _LONGEST_BODY:
            raise WireError("a reply of more than 1 GiB")
        if self._mode == "whole":
            self.kept = self._persistent and not self._buffer
            return True
        return False

    def ended_by_close(self) -> bool:
        """Whether the end of the connection is the proper end of this reply."""
        return self._mode == "close"

    def progress(self) -> str:
        """How far the reply had come, for messages."""
        if self._mode == "head":
            return "before it answered" if not self._buffer else "within the headers"
        return f"within the body, after {len(self.body) + len(self._buffer)} bytes"

    def _read_heads(self) -> None:
        while self._mode == "head":
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _LONGEST_HEAD:
                    raise WireError("headers without end")
                if not b"HTTP/".startswith(self._buffer[:5]):
                    raise WireError("the answer is not HTTP")
                return
            head = bytes(self._buffer[:end])
            del self._buffer[: end + 4]
            self._read_head(head)

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not rest[:3].isdigit():
            raise WireError("the answer is not HTTP/1.1")
        status = int(rest[:3])
        if status < 200:
            if status == 101:
                raise WireError("the server changed the protocol")
            return  # "100 Continue" and the like: the reply proper follows
        self.status = status
        length: int | None = None
        chunked = False
        self._persistent = version != b"HTTP/1.0"
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip():
                raise WireError("a header that is none")
            name, value = name.lower(), value.strip()
            self.headers.append((name, value))
            if name == b"content-length":
                length = _length(value, length)
            elif name == b"transfer-encoding":
                chunked = value.lower().endswith(b"chunked")
            elif name == b"connection" and b"close" in value.lower():
                self._persistent = False
        if status in {204, 304}:
            self._mode = "whole"
        elif chunked:
            self._mode = "chunks"
        elif length is None:
            self._mode, self._persistent = "close", False
        else:
            self._mode, self._missing = "length", length

    def _read_length(self) -> None:
        part = self._buffer[: self._missing]
        del self._buffer[: self._missing]
        self.body += part
        self._missing -= len(part)
        if not self._missing:
            self._mode = "whole"

    def _read_chunks(self) -> None:
        while True:
            if self._missing:
                part = self._buffer[: self._missing]
                del self._buffer[: len(part)]
                self._missing -= len(part)
                self.body += part
                if self._missing:
                    return
                del self.body[-2:]  # the line end after the chunk
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return
            line = bytes(self._buffer[:end]).split(b";", 1)[0].strip()
            try:
                size = int(line, 16)
            except ValueError:
                raise WireError("a chunk without a size") from None
            if size == 0:
                self._read_trailers(end)
                return
            del self._buffer[: end + 2]
            self._missing = size + 2

    def _read_trailers(self, end: int) -> None:
        """After the last chunk: header lines that nobody reads, then an empty one."""
        if self._buffer.startswith(b"\r\n\r\n", end):
            del self._buffer[: end + 4]
            self._mode = "whole"
            return
        last = self._buffer.find(b"\r\n\r\n", end)
        if last >= 0:
            del self._buffer[: last + 4]
            self._mode = "whole"


def _length(value: bytes, before: int | None) -> int:
    if not value.isdigit() or (before is not None and before != int(value)):
        raise WireError("a length that is none")
    return int(value)
