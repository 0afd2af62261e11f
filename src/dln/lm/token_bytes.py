"""The bytes that one token stands for, in the three ways that open tokenizers write them.

Byte-level tokenizers write each byte as one printable character (GPT-2's table). SentencePiece ones write a
blank as U+2581 and a byte outside of their vocabulary as `<0x0A>`. Whatever is neither is its own text.
"""

from __future__ import annotations

import re
from functools import cache

__all__ = ["token_bytes"]

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(token: str, *, byte_level: bool) -> bytes:
    """The bytes of `token`, as it is written in the vocabulary.

    Args:
        token: the vocabulary's entry.
        byte_level: whether the vocabulary is written in GPT-2's table.
    """
    if byte_level:
        table = _bytes_of_characters()
        if all(character in table for character in token):
            return bytes(table[character] for character in token)
        return token.encode()  # an added token, spelled as it is
    single = _BYTE.fullmatch(token)
    return bytes([int(single[1], 16)]) if single else token.replace("\u2581", " ").encode()


@cache
def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
