"""What the service counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from minionerec.recommend.lists import Recommendation

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one service; two services in a process do not share them."""

    def __init__(self, queue_length: Callable[[], int]) -> None:
        """Make the counters.

        Args:
            queue_length: how many requests wait now.
        """
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.calls = Counter("minionerec_calls", "Calls by route and status", ["route", "status"], registry=registry)
        self.requests = Counter("minionerec_requests", "Requests by status", ["status"], registry=registry)
        self.exact = Counter("minionerec_lists_exact", "Lists with a certificate that they are exact", registry=registry)
        self.lists = Counter("minionerec_lists", "Lists", registry=registry)
        self.short = Counter("minionerec_lists_short", "Lists with fewer items than asked for", registry=registry)
        self.fallbacks = Counter("minionerec_lists_fallback", "Popularity lists after empty histories", registry=registry)
        self.items_read = Counter("minionerec_history_items", "Items of the histories that were read", registry=registry)
        self.batch_size = Histogram("minionerec_batch_size", "Requests of a batch", buckets=_SIZES, registry=registry)
        self.wait = Histogram("minionerec_wait_seconds", "From arrival to batch", buckets=_SECONDS, registry=registry)
        self.compute = Histogram("minionerec_compute_seconds", "A batch", buckets=_SECONDS, registry=registry)
        self.total = Histogram("minionerec_call_seconds", "A call", ["route"], buckets=_SECONDS, registry=registry)
        self.reloads = Counter("minionerec_reloads", "Reloads by result", ["result"], registry=registry)
        queue = Gauge("minionerec_queue_length", "Requests that wait", registry=registry)
        queue.set_function(queue_length)
        # The counters of labels that were counted before: to look one up takes longer than to count.
        self._of_call: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._of_request: dict[int, Counter] = {}

    def count_call(self, route: str, status: int, seconds: float) -> None:
        """Count a call that was answered.

        Args:
            route: of the application, so that there are few.
            seconds: that it took.
        """
        if (route, status) not in self._of_call:
            self._of_call[route, status] = self.calls.labels(route, str(status)), self.total.labels(route)
        calls, total = self._of_call[route, status]
        calls.inc()
        total.observe(seconds)

    def count_requests(self, status: int, count: int = 1) -> None:
        """Count requests of a call."""
        if status not in self._of_request:
            self._of_request[status] = self.requests.labels(str(status))
        self._of_request[status].inc(count)

    def count_list(self, recommendation: Recommendation) -> None:
        """Count a list that is answered."""
        self.lists.inc()
        if recommendation.exact:
            self.exact.inc()
        if recommendation.reason is not None:
            self.short.inc()
        if recommendation.fallback is not None:
            self.fallbacks.inc()

    def count_batch(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_size.observe(size)
        self.compute.observe(seconds)

    def page(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
