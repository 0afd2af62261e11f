"""Where the tokens of an echoed prompt begin, so that the boundary of context and target can be found among them.

The tokens' own texts are laid along the prompt: what fits exactly needs no trust in the server's offsets. Where
a token shows only a part of a character, the offsets decide, and are checked against every token that is legible.
"""

from __future__ import annotations

from dataclasses import dataclass

from dln.lm.remote.read import Token, TokenRow, malformed

__all__ = ["Echo", "lay_along"]

ILLEGIBLE = ("\ufffd", "bytes:")


@dataclass(frozen=True, slots=True)
class Echo:
    """The tokens of a prompt, or of its end, as the server scored them.

    Attributes:
        tokens: in order; what was drawn after the prompt is not among them.
        starts: where each begins in the prompt, in characters; None where that cannot be told.
    """

    tokens: tuple[Token, ...]
    starts: tuple[int, ...] | None

    def after(self, boundary: int) -> tuple[Token, ...] | None:
        """The tokens from character `boundary` on; None if a token reaches across it, or places are unknown."""
        if self.starts is None:
            return None
        first = next((i for i, start in enumerate(self.starts) if start >= boundary), None)
        if first is None or self.starts[first] != boundary or (self.starts[0] > boundary):
            return None
        return self.tokens[first:]


def lay_along(row: TokenRow, prompt: str, drawn: int, *, last: int | None = None) -> Echo:
    """The prompt's tokens among `row`, which may end with up to `drawn` tokens of the draw.

    Args:
        row: what the server returned.
        prompt: the text that was sent.
        drawn: most tokens that can stand after the prompt.
        last: how many tokens of the prompt's end were asked for; None for all of it.

    Raises:
        MalformedReply: these are not the prompt's tokens.
    """
    texts = [token.text for token in row.tokens]
    legible = all(text is not None and not any(mark in text for mark in ILLEGIBLE) for text in texts)
    for extra in range(drawn, -1, -1):
        count = len(texts) - extra
        if count < 1:
            continue
        # As many as were asked for are the prompt's end; any other number must be all of it.
        starts = _from_texts([text or "" for text in texts[:count]], prompt, count == last) if legible else None
        if starts is not None:
            return Echo(row.tokens[:count], starts)
    if not legible:
        return _from_offsets(row, prompt, drawn, last)
    raise malformed(
        "the echoed tokens are not those of the prompt",
        where="logprobs.tokens",
        got="".join(text or "" for text in texts),
        expected=repr(prompt[-80:]),
    )


def _from_texts(texts: list[str], prompt: str, end: bool) -> tuple[int, ...] | None:
    # A token that opens the text (bos) is shown by some servers though it is not in the prompt's text.
    for skip in (0, 1):
        shown = [""] * skip + texts[skip:]
        joined = "".join(shown)
        if prompt == joined or (end and not skip and prompt.endswith(joined)):
            starts, at = list[int](), len(prompt) - len(joined)
            for text in shown:
                starts.append(at)
                at += len(text)
            return tuple(starts)
    return None


def _from_offsets(row: TokenRow, prompt: str, drawn: int, last: int | None) -> Echo:
    offsets = row.offsets
    if offsets is None or last is not None:
        return Echo(row.tokens, None)
    count = next((i for i, offset in enumerate(offsets) if offset >= len(prompt)), len(offsets))
    ordered = list(offsets) == sorted(offsets) and len(offsets) - count <= drawn
    fits = all(
        token.text is None or any(mark in token.text for mark in ILLEGIBLE) or prompt.startswith(token.text, offset)
        for token, offset in zip(row.tokens[1:count], offsets[1:count], strict=True)
    )
    return Echo(row.tokens[:count], tuple(offsets[:count]) if ordered and fits else None)
