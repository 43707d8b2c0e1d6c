"""More cores: N gateways on one port (SO_REUSEPORT), each a process with its own journal, watched by this one."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

import structlog

from common.settings import GatewaySettings
from dicom.listening import reserve

RESTART_AFTER_S = 1.0
SHORT_LIFE_S = 5.0
SHORT_LIVES = 3  # in a row: what is wrong will not go away by itself

log = structlog.get_logger()


@dataclass
class _Worker:
    number: int
    process: SpawnProcess
    started: float
    short_lives: int = 0


def supervise(settings: GatewaySettings, work: Callable[[GatewaySettings, int], None]) -> int:
    """Run `work(settings of the worker, its number)` in each worker until SIGTERM or Ctrl-C; returns the exit code.

    A worker that ends by itself is started again and goes on with its journal. One that cannot start ends them all.
    """
    context = multiprocessing.get_context("spawn")
    stopping = failing = False

    def on_signal(number: int, _: object) -> None:
        nonlocal stopping
        stopping = True
        told.clear()
        tell()

    def tell() -> None:
        """Once: a gateway that is told twice does not drain."""
        for worker in workers:
            if worker.process not in told:
                told.add(worker.process)
                worker.process.terminate()

    def reload(number: int, _: object) -> None:
        for worker in workers:
            if worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, number)

    def start(number: int) -> SpawnProcess:
        mine = settings.of_worker(number).model_copy(update={"scp_port": port})
        process = context.Process(target=work, args=(mine, number), name=f"worker {number}")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of workers for good: Ctrl-C reaches them all
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return process

    workers: list[_Worker] = []
    told: set[SpawnProcess] = set()
    with reserve(settings) as reserved:
        port = int(reserved.getsockname()[1])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        if settings.tls_cert is not None:
            signal.signal(signal.SIGHUP, reload)
        workers += [_Worker(n, start(n), time.monotonic()) for n in range(1, settings.workers + 1)]
        while any(worker.process.is_alive() for worker in workers) or not stopping:
            wait([worker.process.sentinel for worker in workers if worker.process.is_alive()], RESTART_AFTER_S)
            if stopping:  # also those that were being started then
                tell()
            for worker in workers:
                if stopping or worker.process.is_alive():
                    continue
                lived_s = time.monotonic() - worker.started
                worker.short_lives = worker.short_lives + 1 if lived_s < SHORT_LIFE_S else 0
                log.error("worker.ended", worker=worker.number, exit_code=worker.process.exitcode)
                if worker.short_lives >= SHORT_LIVES:
                    failing = True
                    on_signal(signal.SIGTERM, None)
                    break
                time.sleep(RESTART_AFTER_S)
                worker.process, worker.started = start(worker.number), time.monotonic()
    ended = {worker.process.exitcode for worker in workers} - {0, -signal.SIGTERM}  # by us, before it had a handler
    return int(failing or bool(ended))
