"""What the server tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Args: waiting, at_work: how many replies are, asked whenever somebody reads."""

    def __init__(self, waiting: Callable[[], int], at_work: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        model = ["model"]
        self.requests = Counter(
            "turnwise_requests", "Requests that were answered", ["model", "status"], registry=registry
        )
        self.prompt_tokens = Counter("turnwise_prompt_tokens", "Tokens that were read", model, registry=registry)
        self.reply_tokens = Counter("turnwise_reply_tokens", "Tokens that were made", model, registry=registry)
        self.first_token = Histogram(
            "turnwise_first_token_seconds", "Until a reply's first token", model, registry=registry, buckets=SECONDS
        )
        self.request_seconds = Histogram(
            "turnwise_request_seconds", "Until a request's last token", model, registry=registry, buckets=SECONDS
        )
        for name, count, says in (
            ("turnwise_replies_waiting", waiting, "Replies that wait for a place in a batch"),
            ("turnwise_replies_at_work", at_work, "Replies that are being made"),
        ):
            Gauge(name, says, registry=registry).set_function(count)

    def text(self) -> bytes:
        return generate_latest(self._registry)
