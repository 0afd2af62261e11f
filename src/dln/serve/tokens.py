"""A model's tokens as a server shows them: prompts to ids, ids to pieces of text with their places."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from dln.errors import InputError
from dln.lm.query import Ids
from dln.lm.token_level import TokenLevel
from dln.lm.tokens import Codec
from dln.serve.fields import Message
from dln.serve.refusal import Refusal

__all__ = ["Prompt", "Tokens"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is continued: its ids, and its text as an echo shows it."""

    ids: Ids
    text: str


class Tokens:
    """Between texts and ids of one model.

    Args:
        lm: the model.
        chat: whether the model's own contexts are user turns.
    """

    def __init__(self, lm: TokenLevel, *, chat: bool) -> None:
        self._lm = lm
        self._chat = chat
        codec = getattr(lm, "codec", None)
        self._codec = codec if isinstance(codec, Codec) else None

    @property
    def terminators(self) -> frozenset[int]:
        """Ids that end a text, as far as they are known."""
        return self._codec.terminators if self._codec else frozenset()

    def prompt(self, given: str | Sequence[int]) -> Prompt:
        """A prompt given as text or as ids.

        Raises:
            Refusal: a text for a model that knows user turns only.
        """
        if not isinstance(given, str):
            ids = tuple(given)
            return Prompt(ids, "".join(self.pieces(ids)))
        if self._codec is not None:
            return Prompt(self._codec.context_ids(given, chat=False), given)
        if self._chat:
            raise Refusal(400, "this is a chat model: use /v1/chat/completions", "prompt", "chat_only")
        return Prompt(self._lm.context_ids(given), given)

    def conversation(self, messages: Sequence[Message]) -> Ids:
        """Messages in the model's own chat form, up to where the assistant begins.

        Raises:
            Refusal: the model has no chat form, or the form does not take these messages.
        """
        single = messages[0].text if len(messages) == 1 and messages[0].role == "user" else None
        if self._codec is not None and self._codec.has_chat:
            if single is not None:
                return self._codec.context_ids(single, chat=True)
            turns = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages]
            tokenizer = self._codec.tokenizer
            try:
                text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            except Exception as error:
                raise Refusal(
                    400, f"the model's chat template refuses these messages: {error}", "messages", "invalid_value"
                ) from error
            return tuple(tokenizer.encode(text, add_special_tokens=False))
        if self._codec is None and self._chat and single is not None:
            return self._lm.context_ids(single)
        raise Refusal(400, "this model has no chat template: use /v1/completions", "messages", "no_chat_template")

    def alone(self, text: str) -> Ids:
        """Ids of a text without special tokens."""
        return self._lm.encode(text)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids that were drawn, special tokens left out."""
        return self._lm.decode(ids)

    def name(self, token_id: int) -> str:
        """One token by itself; one that is no whole text by its id, so that two tokens never share a name."""
        shown = self._lm.token_text(token_id)
        return f"token_id:{token_id}" if "\ufffd" in shown or not shown else shown

    def raw(self, token_id: int) -> bytes:
        """The bytes of one token."""
        return self._lm.token_bytes(token_id)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text that each id adds; a character of several tokens belongs to the last of them."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        last = len(ids) - 1
        try:
            return [decoder.decode(self._lm.token_bytes(token), final=i == last) for i, token in enumerate(ids)]
        except InputError as error:
            raise Refusal(400, str(error), "prompt", "invalid_value") from error

    def offsets(self, ids: Sequence[int], pieces: Sequence[str], text: str) -> list[int]:
        """Where in `text` each piece begins, in characters.

        Tokens that the text does not have (one that the model puts before every text, a terminator) take no room.
        """
        joined = "".join(pieces)
        hidden = joined != text and not joined.startswith(text)
        places: list[int] = []
        at = min(0, len(text) - len(joined)) if joined.endswith(text) else 0
        for token, piece in zip(ids, pieces, strict=True):
            places.append(min(max(at, 0), len(text)))
            if not (hidden and not joined.endswith(text) and not self._lm.decode((token,))):
                at += len(piece)
        return places
