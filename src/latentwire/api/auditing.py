"""`audit`: does a model, with an attention pattern, leak labels or see ahead?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from latentwire.api.spelling import ModelLike, WireLike, as_model, wire
from latentwire.evaluation.audit import Audit
from latentwire.evaluation.audit import audit as run_audit
from latentwire.lm.prompts import Example


def audit(model: ModelLike, over: WireLike = "text", *, examples: Sequence[Example] = (), **options: Any) -> Audit:
    """Exchange tokens one at a time and see which states change: who really sees whom.

    Args:
        model: the model to audit, loaded or by name.
        over: a wire that delivers tokens, or its spelling.
        examples: more examples whose first supervised token is looked at.
        options: those of `evaluation.audit.audit`, such as `kernels=["sdpa"]`.

    Returns:
        What was found; `problems` is empty if nothing leaks and everything agrees.

    Raises:
        UserError: the wire does not deliver tokens.

    Example:
        >>> import latentwire as lw
        >>> lw.audit("embedded:heron", "text,mask=prefix", kernels=["sdpa"]).problems
        []
    """
    return run_audit(as_model(model), wire(over), examples, **options)
