"""Gate and meter an AI service with Tokentill."""

from .gate import Access, AlreadySubscribed, Gate, GateCounts, Problem, Quota, RateLimit, TokentillError, Unreachable
from .middleware import BillingMiddleware, Scope
from .tracker import Counts, UsageTracker
from .usage import Usage, current_usage, new_request_id, provide_usage

__all__ = [
    "Access",
    "AlreadySubscribed",
    "BillingMiddleware",
    "Counts",
    "Gate",
    "GateCounts",
    "Problem",
    "Quota",
    "RateLimit",
    "Scope",
    "TokentillError",
    "Unreachable",
    "Usage",
    "UsageTracker",
    "current_usage",
    "new_request_id",
    "provide_usage",
]
