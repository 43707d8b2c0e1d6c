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
    """Run `work(settings of the worker, its number)` in each worker until SIGTERM or Ctrl-C; return the exit code.

    A worker that ends by itself is started again and goes on with its journal. One that cannot start ends them all.
    """
    with reserve(settings) as reserved:
        return Supervisor(settings, work, port=int(reserved.getsockname()[1])).run()


class Supervisor:
    """Keeps the workers of one port running, and passes signals on to them."""

    def __init__(self, settings: GatewaySettings, work: Callable[[GatewaySettings, int], None], port: int) -> None:
        self._settings = settings
        self._work = work
        self._port = port
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._told: set[SpawnProcess] = set()  # those that know that they are to stop
        self._stopping = False
        self._failing = False

    def run(self) -> int:
        """Start every worker and watch them until all have stopped; return the exit code."""
        for ending in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ending, lambda *_: self._stop())
        if self._settings.tls_cert is not None:
            signal.signal(signal.SIGHUP, lambda number, _: self._pass_on(number))
        for number in range(1, self._settings.workers + 1):
            self._workers.append(_Worker(number, self._start(number), time.monotonic()))
        while self._alive() or not self._stopping:
            wait([worker.process.sentinel for worker in self._alive()], RESTART_AFTER_S)
            if self._stopping:  # also those that were being started then
                self._tell()
            else:
                self._restart_ended()
        ended = {worker.process.exitcode for worker in self._workers}
        return int(self._failing or bool(ended - {0, -signal.SIGTERM}))  # SIGTERM: by us, before it had a handler

    def _start(self, number: int) -> SpawnProcess:
        mine = self._settings.of_worker(number).model_copy(update={"scp_port": self._port})
        process = self._context.Process(target=self._work, args=(mine, number), name=f"worker {number}")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of workers for good: Ctrl-C reaches them all
        process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return process

    def _alive(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.process.is_alive()]

    def _restart_ended(self) -> None:
        """Start again what has ended by itself; stop them all if one ends again and again."""
        for worker in self._workers:
            if self._stopping or worker.process.is_alive():
                continue
            lived_s = time.monotonic() - worker.started
            worker.short_lives = worker.short_lives + 1 if lived_s < SHORT_LIFE_S else 0
            log.error("worker.ended", worker=worker.number, exit_code=worker.process.exitcode)
            if worker.short_lives >= SHORT_LIVES:
                self._failing = True
                self._stop()
                return
            time.sleep(RESTART_AFTER_S)
            worker.process, worker.started = self._start(worker.number), time.monotonic()

    def _stop(self) -> None:
        """Stop every worker; who stops already is told again, which ends it without draining."""
        self._stopping = True
        self._told.clear()
        self._tell()

    def _tell(self) -> None:
        """Send SIGTERM to each worker once: a gateway that is told twice does not drain."""
        for worker in self._workers:
            if worker.process not in self._told:
                self._told.add(worker.process)
                worker.process.terminate()

    def _pass_on(self, number: int) -> None:
        for worker in self._alive():
            if worker.process.pid is not None:
                os.kill(worker.process.pid, number)
