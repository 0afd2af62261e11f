"""Text to token ids and back, and the bytes that one token stands for.

The context is encoded as the model expects it (special tokens, or the chat template around one user turn), the target
alone and without special tokens, and the ids are concatenated. Slicing encode(context + target) instead would let the
tokenizer merge across the boundary, and the score would be that of another text.

Byte-level tokenizers write each byte as one printable character (GPT-2's table); SentencePiece ones write a blank as
U+2581 and a byte outside their vocabulary as `<0x0A>`. Any other token is its own text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Protocol

from dln.errors import InputError
from dln.lm.base import Token

__all__ = ["Codec", "Tokenizer", "token_bytes"]

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


# Special tokens that end a text in the vocabularies of open models, whatever the configuration names as eos.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "<end_of_turn>", "<|im_end|>")
ANCHOR = "a"
MARK = "dlnmark"


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None
    all_special_ids: list[int]
    chat_template: str | None

    def encode(self, text: str, *, add_special_tokens: bool = ..., **options: object) -> list[int]:
        """Text to ids."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, **options: object) -> str:
        """Ids to text."""
        ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """The id of one token."""
        ...

    def convert_ids_to_tokens(self, ids: int) -> str | None:
        """The vocabulary's entry for one id."""
        ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """A conversation as the text that the model was trained on."""
        ...


class Codec:
    """Encodes contexts and targets and decodes draws, for one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        eos_ids: the ids that the model's configuration says end a text.
    """

    def __init__(self, tokenizer: Tokenizer, eos_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._vocabulary: dict[int, Token | None] = {}
        self._anchor = self.target_ids(ANCHOR)
        self._anchor_text = self._decode(self._anchor)
        # Some tokenizers close every text with an eos; a context that is to be continued must not have it.
        probe = tuple(tokenizer.encode(ANCHOR, add_special_tokens=True))
        self._closing = 0
        while self._closing < len(probe) and probe[-1 - self._closing] in self._special:
            self._closing += 1
        self.terminators = frozenset(self._find_terminators(eos_ids))

    @property
    def has_chat(self) -> bool:
        """Whether the tokenizer knows how to write a conversation."""
        return bool(self.tokenizer.chat_template)

    def context_ids(self, context: str, chat: bool) -> tuple[int, ...]:
        """Ids of a context, ready to be continued; never empty.

        A special token spelled out in the context counts as that token, as the tokenizer's own call has it.

        Raises:
            InputError: the context is empty and the model has no token to start a text with.
        """
        if chat:
            turn = [{"role": "user", "content": context}]
            return tuple(self.tokenizer.encode(self._render(turn, prompt=True), add_special_tokens=False))
        ids = tuple(self.tokenizer.encode(context, add_special_tokens=True))
        ids = ids[: len(ids) - self._closing]
        if ids:
            return ids
        start = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        if start is None:
            raise InputError(
                "an empty context cannot be continued: this model has no token that starts a text",
                where="contexts",
                fix="give a context of at least one token",
            )
        return (start,)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as a target, without special tokens."""
        return len(self.target_ids(text))

    def first_token(self, text: str) -> Token | None:
        """The first token of `text` as a target."""
        ids = self.target_ids(text)
        return self.token(ids[0]) if ids else None

    def target_ids(self, text: str) -> tuple[int, ...]:
        """Ids of a target on its own: no special tokens, and none recognised inside the text either."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def text(self, token_ids: Sequence[int]) -> str:
        """The text that `token_ids` add to what stands before them; special tokens have none.

        Decoded behind a fixed word, because some decoders drop the blank that opens a text, and a draw is
        never the opening of one.
        """
        decoded = self._decode((*self._anchor, *token_ids))
        if decoded.startswith(self._anchor_text):
            return decoded[len(self._anchor_text) :]
        return self._decode(token_ids)

    def text_tokens(self, token_ids: Sequence[int], text: str) -> int:
        """How many leading ids lie wholly within `text`, a beginning of their own text."""
        for count in range(len(token_ids), 0, -1):
            if text.startswith(self.text(token_ids[:count])):
                return count
        return 0

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; of a special token its name, of an id without entry nothing."""
        token = self.tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        return token.encode() if token_id in self._special else token_bytes(token, byte_level=self._byte_level)

    def token(self, token_id: int) -> Token | None:
        """The token of an id, remembered; None for a special token and for one whose text is encoded otherwise."""
        if token_id not in self._vocabulary:
            text = "" if token_id in self._special else self._token_text(token_id)
            self._vocabulary[token_id] = Token(text, token_id) if text and self._encoded(text) == token_id else None
        return self._vocabulary[token_id]

    def token_id(self, token: Token) -> int | None:
        """The id of a token: its own if that id's text is the token's, else that of its text; None if it has none."""
        if token.id is not None and token.text and self._token_text(token.id) == token.text:
            return token.id
        return self._encoded(token.text)

    def _token_text(self, token_id: int) -> str:
        """The text of one token; empty if it is no valid UTF-8, or if there is no such id."""
        try:
            return self.token_bytes(token_id).decode()
        except (UnicodeDecodeError, OverflowError):  # an id that is no C integer
            return ""

    def _encoded(self, text: str) -> int | None:
        """The one id of `text` as a target; some tokenizers write the blank that opens a text themselves."""
        ids = self.target_ids(text)
        if len(ids) == 1:
            return ids[0]
        ids = self.target_ids(text[1:]) if text[:1] == " " else ()
        return ids[0] if len(ids) == 1 and self._token_text(ids[0]) == text else None

    @cached_property
    def _byte_level(self) -> bool:
        """Whether a blank is written as the byte-level table has it: "\u0120" stands for byte 0x20."""
        tokens = (self.tokenizer.convert_ids_to_tokens(i) for i in self.target_ids(f"{ANCHOR} {ANCHOR}\n"))
        return any("\u0120" in token for token in tokens if token)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _render(self, turns: list[dict[str, str]], *, prompt: bool) -> str:
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)

    def _find_terminators(self, eos_ids: Sequence[int]) -> set[int]:
        ids = set(eos_ids)
        if self.tokenizer.eos_token_id is not None:
            ids.add(self.tokenizer.eos_token_id)
        named = (self.tokenizer.convert_tokens_to_ids(token) for token in END_OF_TEXT)
        ids.update(token_id for token_id in named if token_id is not None and token_id in self._special)
        if self.has_chat:
            # What the template writes right after an assistant's words is what ends the assistant's turn.
            turns = [{"role": "user", "content": ANCHOR}, {"role": "assistant", "content": MARK}]
            after = self._render(turns, prompt=False).rpartition(MARK)[2]
            closing = self.tokenizer.encode(after, add_special_tokens=False) if after else []
            if closing and closing[0] in self._special:
                ids.add(closing[0])
        return ids
