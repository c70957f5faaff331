"""What a driving process tells Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_args

from deploy.live.intake import Intake
from deploy.live.outputs import Output
from deploy.live.state import WORST_LAST, Status
from deploy.recordings.counts import PROBLEMS
from perception.errors import InputError, install_hint
from perception.frame import Frame
from perception.scene.health.features import Status as Health
from perception.scene.scene import SceneFrame

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)  # s
Samples = Iterable[tuple[tuple[str, ...], float]]  # values of the labels, value


class Metrics(Output):
    """Serves the metrics of docs/drive.md at http://HOST:PORT/metrics, as Prometheus expects.

    Durations are histograms that grow frame by frame; all else is read from the process when somebody asks.
    """

    name = "metrics"

    def __init__(self, address: str, intake: Intake) -> None:
        """Listen at PORT of this machine, or at HOST:PORT; InputError if that cannot be."""
        try:
            import prometheus_client
            from prometheus_client import core
        except ImportError:
            raise InputError(f"--metrics: prometheus_client is not installed; {install_hint('live')}") from None
        self._core, self._intake = core, intake
        self._status = Status(())  # the latest one
        self._begun: Counter[str] = Counter()  # reasons, by code
        self._seen: SceneFrame | None = None
        registry = prometheus_client.CollectorRegistry()
        histogram = prometheus_client.Histogram
        self._stages = histogram(
            "tessera_stage_seconds", "Duration of a stage of a frame.", ["stage"], registry=registry, buckets=BUCKETS
        )
        self._latency = histogram(
            "tessera_latency_seconds", "From a frame's last message to its output.", registry=registry, buckets=BUCKETS
        )
        self._masked = prometheus_client.Counter(
            "tessera_frames_masked", "Frames in which the policy masked a sensor.", ["sensor"], registry=registry
        )
        registry.register(self)
        try:
            host, _, port = address.rpartition(":")
            serve = prometheus_client.start_http_server
            self._server, self._thread = serve(int(port), host or "127.0.0.1", registry)
        except (OSError, ValueError, OverflowError) as error:
            why = getattr(error, "strerror", None) or "give PORT or HOST:PORT"
            raise InputError(f"--metrics {address}: cannot listen there ({why}); choose another port") from None

    def add(self, frame: Frame, seen: SceneFrame) -> None:
        self._seen = seen
        for stage, seconds in seen.seconds.items():
            self._stages.labels(stage).observe(seconds)

    def report(self, status: Status) -> None:
        before = {(each.code, each.subject) for each in self._status.reasons}
        self._begun.update(each.code for each in status.reasons if (each.code, each.subject) not in before)
        self._status = status

    def log(self, line: dict[str, Any]) -> None:
        if line["outcome"] == "perceived":
            self._latency.observe(1e-3 * line["ms"])
            for sensor in line["masked"]:
                self._masked.labels(sensor).inc()

    def collect(self) -> Iterator[Any]:
        """The metrics that are read now, as prometheus_client asks for them."""
        status, seen = self._status, self._seen
        yield from self._of_intake()
        states = (((each,), float(each == status.state)) for each in WORST_LAST)
        yield self._gauge("state", "1 for the state of the process.", ("state",), states)
        reasons = {(each.state, each.code, each.subject): 1.0 for each in status.reasons}
        yield self._gauge("reason", "The reasons of the state.", ("state", "code", "subject"), reasons.items())
        begun = (((code,), count) for code, count in dict(self._begun).items())
        yield self._counter("reasons", "How often a reason began.", ("code",), begun)
        if seen is not None:
            yield from self._of_scene(seen)

    def _of_intake(self) -> Iterator[Any]:
        outcomes = {"perceived": 0, "superseded": 0, "unposed": 0, **self._intake.outcomes}
        announced = self._intake.announced  # after the outcomes, so that it is not less than their sum
        counts = self._intake.counts.summary()
        yield self._counter("frames_announced", "Frames that a sensor or a keyframe announced.", (), [((), announced)])
        waiting = [((), float(announced - sum(outcomes.values())))]
        yield self._gauge("frames_waiting", "Frames announced that have no outcome yet.", (), waiting)
        yield self._counter("frames", "Frames by outcome.", ("outcome",), _by_name(outcomes))
        missing = _by_name(counts["missing"])
        yield self._counter("frames_missing", "Frames without a sensor's data.", ("sensor",), missing)
        yield self._counter("messages", "Messages received.", ("topic",), _by_name(counts["messages"]))
        problems = (((topic, kind), count) for kind in PROBLEMS for topic, count in counts.get(kind, {}).items())
        yield self._counter("message_problems", "Messages with a problem.", ("topic", "problem"), problems)

    def _of_scene(self, seen: SceneFrame) -> Iterator[Any]:
        health = (
            ((name, status), float(status in {each.status for each in (found, *found.also)}))
            for name, found in seen.health.items()
            for status in get_args(Health)
        )
        yield self._gauge("sensor_status", "1 for each status of a sensor.", ("sensor", "status"), health)
        beliefs = (((kind, belief.value or "unknown"), 1.0) for kind, belief in seen.beliefs.items())
        yield self._gauge("condition", "1 for the believed condition of a kind.", ("kind", "value"), beliefs)
        weights = (((name,), routed.weight) for name, routed in seen.route.items())
        yield self._gauge("module_weight", "Weight of a module in the latest frame.", ("module",), weights)

    def _gauge(self, name: str, says: str, labels: tuple[str, ...], samples: Samples) -> Any:
        return _filled(self._core.GaugeMetricFamily(f"tessera_{name}", says, labels=labels), samples)

    def _counter(self, name: str, says: str, labels: tuple[str, ...], samples: Samples) -> Any:
        return _filled(self._core.CounterMetricFamily(f"tessera_{name}", says, labels=labels), samples)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _by_name(counts: Mapping[str, int]) -> Samples:
    return (((name,), float(count)) for name, count in counts.items())


def _filled(family: Any, samples: Samples) -> Any:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family
