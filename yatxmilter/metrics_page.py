"""
Metrics and health over HTTP, on an endpoint of its own; needs the extra ``[metrics]``.
"""

from yatxmilter.service._metrics_page import (
    listen_metrics,
    metrics_site,
    metrics_text,
)

__all__ = [
    "listen_metrics",
    "metrics_site",
    "metrics_text",
]
