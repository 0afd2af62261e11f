"""A request that is not answered: the status and the error object that clients of the OpenAI form understand."""

from __future__ import annotations

from typing import Any

from dln.errors import BudgetReached, ContextLengthError, DlnError, InputError, ProviderError

__all__ = ["Refusal", "refusal_of"]


class Refusal(Exception):
    """An error answer.

    Args:
        status: of HTTP.
        message: what is wrong, and what would be right.
        param: the request's field that is concerned.
        code: a word for programs.
        retry_after: seconds after which asking again makes sense.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The word that clients find as `type`."""
        if self.status == 401:
            return "authentication_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def refusal_of(error: DlnError) -> Refusal:
    """What the model refused, as an answer: what the client can mend is 400, what it cannot is 5xx."""
    if isinstance(error, ContextLengthError):
        return Refusal(400, str(error), None, "context_length_exceeded")
    if isinstance(error, InputError):
        return Refusal(400, str(error), str(error.where) if error.where is not None else None, "invalid_value")
    if isinstance(error, BudgetReached):
        return Refusal(429, str(error), None, "insufficient_quota")
    if isinstance(error, ProviderError):
        return Refusal(502, str(error), None, "provider_error")
    return Refusal(500, str(error), None, "model_error")
