"""What a server takes on, and from whom."""

from __future__ import annotations

from dataclasses import dataclass, field

from tgate_export.runtime.batching import BatchingOptions


@dataclass(frozen=True)
class ServeOptions:
    """Limits and keys of a server.

    Attributes:
        api_keys: any of them opens `/v1` and `/sdapi`; without one everybody may generate.
        hosts: names that requests may call the server by; none for any. Beside a loopback address
            it keeps out pages of other sites, whatever they make of their own names.
        batching: see `BatchingOptions`; of every model.
        memory_bytes: weights of the models that are loaded at a time; None for no bound. The model
            that nobody has used for longest makes room for the next.
        max_images: of one request.
        max_body_bytes: of one request.
        body_seconds: in which a request's body must have come.
        max_requests: answered at a time; more get 503.
        max_connections: open at a time; for one more, the one that has asked for nothing for
            longest is closed. Fewer where the process may open fewer files.
        stop_seconds: that requests have to end when the server is told to stop.
    """

    api_keys: frozenset[str] = field(default=frozenset(), repr=False)
    hosts: frozenset[str] = frozenset()
    batching: BatchingOptions = field(default_factory=BatchingOptions)
    memory_bytes: int | None = None
    max_images: int = 10
    max_body_bytes: int = 32 * 2**20
    body_seconds: float = 30.0
    max_requests: int = 1000
    max_connections: int = 4096
    stop_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in (
            "memory_bytes", "max_images", "max_body_bytes", "body_seconds", "max_requests",
            "max_connections", "stop_seconds",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
