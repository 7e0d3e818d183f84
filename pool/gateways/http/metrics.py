"""/metrics: queue lengths and ages, outcomes and durations by engine, workers, restarts, resident memory.

Everything is read when Prometheus scrapes; jobs update no counters while they run.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pool.client.status import ClusterStatus, PoolStatus, SlotStatus
from pool.gateways.http.desk import Desk
from pool.gateways.http.ledger import Histogram

_VERDICTS = ("ok", "degraded", "down")


def make_registry(desk: Desk) -> CollectorRegistry:
    """A registry for one application: one process may have several."""
    registry = CollectorRegistry()
    registry.register(_PoolCollector(desk))
    ProcessCollector(namespace="filepool_http", registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def render(registry: CollectorRegistry) -> bytes:
    """The metrics in the text format of Prometheus."""
    return generate_latest(registry)


class _PoolCollector(Collector):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def describe(self) -> list[Metric]:
        return []  # otherwise registering would collect once

    def collect(self) -> Iterator[Metric]:
        status, ledger = self._desk.status(), self._desk.ledger
        ledger.refresh()
        ledger.watch_slots(status)
        yield from _queues(status)
        yield from _workers(status)
        if status.cluster is not None:
            yield from _nodes(status, status.cluster)
        outcomes = CounterMetricFamily(
            "filepool_jobs", "Jobs that ended; kind: of the failure", labels=["engine", "state", "kind"]
        )
        for (engine, state, kind), count in sorted(ledger.outcomes.items()):
            outcomes.add_metric([engine, state, kind], count)
        yield outcomes
        yield _histogram("filepool_job_duration_seconds", "From the last claim to the record", ledger.durations)
        yield _histogram("filepool_job_wait_seconds", "From submit to the last claim", ledger.waits)
        restarts = CounterMetricFamily(
            "filepool_worker_restarts_by_reason", "Restarts of workers by reason", labels=["engine", "reason"]
        )
        for (engine, reason), count in sorted(ledger.restarts.items()):
            restarts.add_metric([engine, reason], count)
        yield restarts


def _queues(status: PoolStatus) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("filepool_queue_jobs", "Jobs by state", labels=["engine", "state"])
    oldest = GaugeMetricFamily("filepool_queue_oldest_seconds", "Age of the oldest waiting job", labels=["engine"])
    for engine in status.engines:
        for state in ("queued", "held", "deferred", "running", "dead"):
            jobs.add_metric([engine.name, state], getattr(engine, state))
        oldest.add_metric([engine.name], engine.oldest_wait_s or 0.0)
    yield jobs
    yield oldest
    for name, text, value in (
        ("filepool_dropped_files", "Files in in/ that intake has not taken yet", status.dropped),
        ("filepool_quarantined_files", "Drops that were refused", status.quarantined),
        ("filepool_records", "Results, failures and cancellations that are kept", status.records),
        ("filepool_disk_free_bytes", "Free bytes on the disk of the spool", status.free_bytes),
        ("filepool_supervisor_up", "1 while a supervisor serves the spool", status.supervisor is not None),
        ("filepool_draining", "1 while the pool drains", status.draining),
    ):
        gauge = GaugeMetricFamily(name, text)
        gauge.add_metric([], float(value))
        yield gauge
    still = CounterMetricFamily(
        "filepool_stood_still_seconds", "Seconds in which the supervisor could not look: suspended, paused, starved"
    )
    still.add_metric([], status.stood_still_s)
    yield still
    health = GaugeMetricFamily("filepool_health", "1 for the current verdict", labels=["verdict"])
    for verdict in _VERDICTS:
        health.add_metric([verdict], float(status.health.verdict == verdict))
    yield health


def _workers(status: PoolStatus) -> Iterator[Metric]:
    wanted = GaugeMetricFamily("filepool_workers_configured", "Workers in config.json", labels=["engine"])
    for engine in status.engines:
        wanted.add_metric([engine.name], engine.workers)
    yield wanted
    labels = ["engine", "slot"]
    states = GaugeMetricFamily(
        "filepool_worker_state",
        "1 for the current state of the slot: a phase, or benched, waiting, …",
        labels=[*labels, "state"],
    )
    serving = GaugeMetricFamily("filepool_worker_serving", "1 while the worker takes or runs jobs", labels=labels)
    resident = GaugeMetricFamily(
        "filepool_worker_resident_memory_bytes", "Resident memory of the worker process", labels=labels
    )
    gpu = GaugeMetricFamily("filepool_worker_gpu_memory_bytes", "GPU memory as reported by the engine", labels=labels)
    silent = GaugeMetricFamily("filepool_worker_silent_seconds", "Seconds since the last heartbeat", labels=labels)
    starts = CounterMetricFamily("filepool_worker_starts", "Processes started in the slot", labels=labels)
    restarts = CounterMetricFamily("filepool_worker_restarts", "Starts after the previous process ended", labels=labels)
    for slot in status.slots:
        if slot.node:
            continue  # the gateway of its machine has it
        names = [slot.engine, slot.slot]
        states.add_metric([*names, _state(slot)], 1.0)
        serving.add_metric(names, float(slot.serving))
        resident.add_metric(names, slot.rss_bytes)
        gpu.add_metric(names, slot.gpu_bytes)
        silent.add_metric(names, slot.silent_s or 0.0)
        starts.add_metric(names, slot.starts)
        restarts.add_metric(names, slot.restarts)
    yield from (states, serving, resident, gpu, silent, starts, restarts)


def _nodes(status: PoolStatus, cluster: ClusterStatus) -> Iterator[Metric]:
    connected = GaugeMetricFamily("filepool_cluster_connected", "1 while the servers of the cluster answer")
    connected.add_metric([], float(cluster.connected and not cluster.trouble))
    waiting = GaugeMetricFamily("filepool_cluster_waiting_jobs", "Jobs that were sent and have not begun on a node")
    waiting.add_metric([], cluster.waiting)
    count = GaugeMetricFamily("filepool_nodes", "Nodes of the cluster")
    count.add_metric([], len(status.nodes))
    slots = GaugeMetricFamily(
        "filepool_node_slots", "Slots by state: busy, idle, or down", labels=["node", "engine", "state"]
    )
    for node in status.nodes:
        for engine, about in sorted(node.engines.items()):
            idle, down = about["serving"] - about["busy"], about["slots"] - about["serving"]
            for state, number in (("busy", about["busy"]), ("idle", idle), ("down", down)):
                slots.add_metric([node.name, engine, state], max(0, number))
    yield from (connected, waiting, count, slots)


def _state(slot: SlotStatus) -> str:
    return slot.phase if slot.phase and slot.seat in ("running", "orphaned") else slot.seat or "unknown"


def _histogram(name: str, text: str, by_engine: dict[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=["engine"])
    for engine, histogram in sorted(by_engine.items()):
        family.add_metric([engine], list(histogram.cumulative()), histogram.total_s)
    return family
