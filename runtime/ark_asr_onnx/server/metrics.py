"""The metrics of a service, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..transcript import Transcript

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kind: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "ark_asr_requests", "Requests answered", ("route", "status"), **kind
        )
        self.request_seconds = Histogram(
            "ark_asr_request_seconds", "From a request's first byte to its answer's last",
            ("route",), buckets=_SECONDS, **kind,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "ark_asr_queue_seconds", "Until the reading of the audio began", buckets=_SECONDS,
            **kind,
        )  # fmt: skip
        self.audio_seconds = Counter("ark_asr_audio_seconds", "Audio transcribed", **kind)
        self.tokens = Counter("ark_asr_tokens", "Tokens written", **kind)
        self.flagged = Counter(
            "ark_asr_windows_flagged", "Windows whose text may lack something", ("reason",), **kind
        )
        self.warnings = Counter(
            "ark_asr_audio_warnings", "What may be missing from audio", ("kind",), **kind
        )
        self.cancelled = Counter("ark_asr_cancelled", "Requests whose client went away", **kind)
        self.rejected = Counter(
            "ark_asr_rejected", "Requests refused before any work", ("reason",), **kind
        )

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed when it is read."""
        Gauge(name, what, registry=self.registry).set_function(value)

    def count(self, transcript: Transcript, queue_seconds: float) -> None:
        """Count a finished transcript, and the seconds that its request waited."""
        self.queue_seconds.observe(queue_seconds)
        self.audio_seconds.inc(transcript.duration)
        self.tokens.inc(len(transcript.token_ids))
        for warning in transcript.warnings:
            self.warnings.labels(warning.kind).inc()
        for segment in transcript.flagged:
            self.flagged.labels(segment.finish_reason).inc()

    def text(self) -> bytes:
        """All metrics in the exposition format."""
        return generate_latest(self.registry)
