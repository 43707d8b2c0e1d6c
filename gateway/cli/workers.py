"""Use several cores: run N gateways on one port (SO_REUSEPORT), each in a process with its own journal."""

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

RESTART_AFTER_S = 1.0  # pause before a worker is started again
SHORT_LIFE_S = 5.0  # a worker that ends within this time has had a short life
SHORT_LIVES = 3  # after so many short lives in a row all workers are stopped: the problem will not solve itself

log = structlog.get_logger()


@dataclass
class _Worker:
    number: int
    process: SpawnProcess
    started: float
    short_lives: int = 0


def supervise(settings: GatewaySettings, work: Callable[[GatewaySettings, int], None]) -> int:
    """Run `work(settings of the worker, its number)` in each worker until SIGTERM or Ctrl-C; return the exit code.

    A worker that ends by itself is started again and continues with its journal. If one cannot start, all are stopped.
    """
    with reserve(settings) as reserved:
        return _Supervisor(settings, work, int(reserved.getsockname()[1])).run()


class _Supervisor:
    """Starts the workers, passes signals on, and restarts workers that end."""

    def __init__(self, settings: GatewaySettings, work: Callable[[GatewaySettings, int], None], port: int) -> None:
        self._settings = settings
        self._work = work
        self._port = port
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._told: set[SpawnProcess] = set()
        self._stopping = self._failing = False

    def run(self) -> int:
        """Supervise until all have ended because they were told to; return the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        if self._settings.tls_cert is not None:
            signal.signal(signal.SIGHUP, self._reload)
        numbers = range(1, self._settings.workers + 1)
        self._workers += [_Worker(n, self._start(n), time.monotonic()) for n in numbers]
        while any(worker.process.is_alive() for worker in self._workers) or not self._stopping:
            wait([worker.process.sentinel for worker in self._workers if worker.process.is_alive()], RESTART_AFTER_S)
            if self._stopping:  # includes workers that were just being started
                self._tell()
            for worker in self._workers:
                if not self._stopping and not worker.process.is_alive():
                    self._restart(worker)
        exit_codes = {worker.process.exitcode for worker in self._workers}
        failed = exit_codes - {0, -signal.SIGTERM}  # SIGTERM: stopped by us before it had a handler
        return int(self._failing or bool(failed))

    def _start(self, number: int) -> SpawnProcess:
        mine = self._settings.of_worker(number).model_copy(update={"scp_port": self._port})
        process = self._context.Process(target=self._work, args=(mine, number), name=f"worker {number}")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers inherit this: Ctrl-C is not for them
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return process

    def _restart(self, worker: _Worker) -> None:
        """Start a worker that has ended again; stop them all if it keeps ending at once."""
        lived_s = time.monotonic() - worker.started
        worker.short_lives = worker.short_lives + 1 if lived_s < SHORT_LIFE_S else 0
        log.error("worker.ended", worker=worker.number, exit_code=worker.process.exitcode)
        if worker.short_lives >= SHORT_LIVES:
            self._failing = True
            self._stop(signal.SIGTERM, None)
            return
        time.sleep(RESTART_AFTER_S)
        worker.process, worker.started = self._start(worker.number), time.monotonic()

    def _stop(self, number: int, _: object) -> None:
        """Tell every worker to end, on a signal."""
        self._stopping = True
        self._told.clear()
        self._tell()

    def _tell(self) -> None:
        """Tell each worker once: a gateway that is told twice does not drain."""
        for worker in self._workers:
            if worker.process not in self._told:
                self._told.add(worker.process)
                worker.process.terminate()

    def _reload(self, number: int, _: object) -> None:
        """Hand a signal on to every worker that runs."""
        for worker in self._workers:
            if worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, number)
