"""What tells two served models apart, as a short text that may be shown and stored."""

from __future__ import annotations

import hashlib

from dln.lm.remote.probe_report import ProbeReport

__all__ = ["fingerprint_of"]

ENGINE_VERSION = "1"


def fingerprint_of(report: ProbeReport, source: str, *, chat: bool) -> str:
    """Kind of server, model (as asked for, as it answers, what it is made from), address or revision, rungs.

    Args:
        report: what the probe found.
        source: the addresses without credentials, or the user's word for the revision.
        chat: whether contexts are a user's turns.
    """
    kind = "chat" if chat else "completion"
    what = [
        report.dialect,
        report.model,
        report.served_model or "",
        report.root or "",
        source,
        kind,
        report.rung,
        report.target_rung,
        ENGINE_VERSION,
    ]
    digest = hashlib.sha256("\x1f".join(what).encode()).hexdigest()[:16]
    served = report.served_model or report.model
    return f"{report.dialect}:{served}:{kind}:{report.rung}:{report.target_rung}:{digest}"
