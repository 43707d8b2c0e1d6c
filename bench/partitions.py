"""Hosts that are cut off while images come, and come back: packets dropped, one way or both, and addresses that move.

```
sender ──▶ front ──▶ gateway-1 ──▶ back ──▶ server-1 ──▶ database
   └──────────────▶ gateway-2 ──────┴────▶ server-2 ──▶    │
follower ──▶ back, server-1                              hook
```

`front` and `back` are HAProxy, `standby` is a second one that takes `back`'s address over. Each is a host of its own
(bench.rig.network). Nothing dies: whoever is cut off goes on with what it believes.
"""

import asyncio
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from pydicom.dataset import Dataset
from pynetdicom.fsm import InvalidEventError
from rich.box import MARKDOWN
from rich.table import Table

from bench.judging import Follower, PageFollower, StreamFollower, Trial, followed, judge_changes
from bench.rig import network as hosts_of_our_own
from bench.rig.haproxy import OF_GATEWAYS, OF_SERVERS, haproxy_process, listen
from bench.rig.http_server import Answer, Request, http_server
from bench.rig.network import SUBNET, Network, network
from bench.rig.postgres import missing_own, postgresql_at
from bench.rig.processes import ROOT, Process, command_line, make_key, start_gateway, start_server
from bench.rig.senders import PacedSender, synthetic_series
from models import Change

HOSTS = (
    *("sender", "follower", "hook", "front", "back", "standby"),
    *("gateway-1", "gateway-2", "server-1", "server-2", "database"),
)
DICOM, HTTP = 11112, 8000
GATEWAY = {
    "GATEWAY_SCP_HOST": "0.0.0.0",  # noqa: S104 - on a host that only this program reaches
    "GATEWAY_ALLOW_ANY_PEER": "true",
    "GATEWAY_IDLE_TIMEOUT_S": "0.3",
    "GATEWAY_MAX_OPEN_S": "0.5",  # the series is reported again and again while its images come
    "GATEWAY_RETRY_MAX_S": "0.5",
    "GATEWAY_MIN_FREE_BYTES": "0",
}
SERVER = {"SERVER_REQUESTS_PER_S": "1000000"}

LINKS = (
    ("sender", "front"),
    ("sender", "gateway-1"),
    ("sender", "gateway-2"),
    ("front", "gateway-1"),
    ("front", "gateway-2"),
    ("gateway-1", "back"),
    ("gateway-2", "server-2"),
    ("back", "server-1"),
    ("back", "server-2"),
    ("server-1", "database"),
    ("server-2", "database"),
    ("follower", "back"),
    ("follower", "server-1"),
    ("server-1", "hook"),
    ("server-2", "hook"),
)
NOT_LONG = LINKS[-2:]  # a webhook that has failed for long is tried again after minutes only
SHORT_S, LONG_S = (1.0, 6.0), (12.0, 30.0, 90.0)
PAUSE_S = (0.2, 1.0)  # between two partitions of a lane
ASSOCIATIONS = 6  # that share one series, over three ways
IMAGES_PER_S = 8  # of that series
TWICE = 0.03  # so many of all its images each association sends beside its own
FURTHER_SENDERS = 2  # of small series, one after the other
MOVES = (("server-1", "server-2"), ("back", "standby"))  # an address goes from the one to the other, and back
MOVED_S = (2.0, 8.0)
SEND_AGAIN_S = 240.0  # after the last partition


def missing() -> str | None:
    """Why nothing can be cut off here; None where it can."""
    return hosts_of_our_own.missing() or missing_own()


@dataclass(frozen=True)
class Partition:
    """What is cut, how long, which way."""

    ends: tuple[str, str]
    ways: tuple[tuple[str, str], ...]
    seconds: float
    moves: bool = False
    """The address of the first end goes to the second, and comes back."""


def plan(rng: random.Random, number: int) -> list[list[Partition]]:
    """Partitions in lanes that run at once: short ones, long ones, and addresses that move.

    Every link is cut before one is cut again. A lane does one after the other, so no address moves twice at once.
    """
    long = LONG_S if number >= 2 * len(LINKS) else LONG_S[:1]
    ends = [link for link in LINKS if link not in NOT_LONG]
    longs = [_cut(link, seconds, rng) for link, seconds in zip(rng.sample(ends, len(long)), long, strict=True)]
    moves = [Partition(ends, (), rng.uniform(*MOVED_S), moves=True) for ends in MOVES * len(long)][:4]
    short = number - len(longs) - len(moves)
    links = [link for _ in range(short // len(LINKS) + 1) for link in rng.sample(LINKS, len(LINKS))]
    shorts = [_cut(link, rng.uniform(*SHORT_S), rng) for link in links[:short]]
    return [shorts[::2], shorts[1::2], longs[::2], [*longs[1::2], *moves]]


def _cut(link: tuple[str, str], seconds: float, rng: random.Random) -> Partition:
    there, back = link, (link[1], link[0])
    return Partition(link, rng.choice([(there, back), (there, back), (there,), (back,)]), seconds)


def strike(net: Network, lane: Sequence[Partition], seed: float, done: Callable[[], None]) -> None:
    """Make one partition after the other, and end each."""
    rng = random.Random(seed)
    for partition in lane:
        time.sleep(rng.uniform(*PAUSE_S))
        with _partitioned(net, partition):
            time.sleep(partition.seconds)
        done()


@contextmanager
def _silent() -> Iterator[None]:
    """Stock pynetdicom's thread ends with a traceback where an association is cut off in its last moment."""
    told = threading.excepthook
    threading.excepthook = lambda raised: None if raised.exc_type is InvalidEventError else told(raised)
    try:
        yield
    finally:
        threading.excepthook = told


@contextmanager
def _partitioned(net: Network, partition: Partition) -> Iterator[None]:
    first, second = partition.ends
    if partition.moves:
        net.move(first, first, second)
    for way in partition.ways:
        net.drop(*way)
    try:
        yield
    finally:
        for way in partition.ways:
            net.pass_(*way)
        if partition.moves:
            net.move(first, second, first)


# --- the hosts ----------------------------------------------------------------------------------------------------


@dataclass
class Hosts:
    """What runs on each."""

    net: Network
    folder: Path
    keys: Mapping[str, Path]
    hook: "Hook"
    gateways: list[Process] = field(default_factory=list)
    servers: list[Process] = field(default_factory=list)

    def url(self, host: str) -> str:
        return f"http://{self.net.address(host)}:{HTTP}"

    def client(self, host: str) -> httpx.AsyncClient:
        """Return what calls there with the followers' key. It bounds its waits: a stream says something every 15 s."""
        headers = {"Authorization": f"Bearer {self.keys['followers'].read_text().strip()}"}
        timeout = httpx.Timeout(10.0, read=20.0)
        return httpx.AsyncClient(base_url=self.url(host), headers=headers, timeout=timeout, trust_env=False)

    def drain(self) -> None:
        """Stop the gateways; what they hold is delivered before they end."""
        for gateway in self.gateways:
            gateway.stop()
            if [event["undelivered"] for event in gateway.events("gateway.stopped")] != [0]:
                raise RuntimeError("a gateway has kept reports for its next start")


@contextmanager
def hosts(folder: Path, gateway_root: Path = ROOT, server_root: Path = ROOT) -> Iterator[Hosts]:
    """All of them, with what runs there; stopped and removed at the end."""
    folder.chmod(0o755)  # PostgreSQL is somebody else's
    with ExitStack() as stack:
        net = stack.enter_context(network(HOSTS))
        with net.inside("database"):
            database = stack.enter_context(
                postgresql_at(folder / "database", net.address("database"), f"{SUBNET}.0/24")
            )
        environment = SERVER | {"DATABASE_URL": database.render_as_string(hide_password=False)}
        with net.inside("server-1"):
            kinds = {"gateways": "series:write", "followers": "series:read"}
            keys = {name: make_key(folder, environment, name, scope) for name, scope in kinds.items()}
        with net.inside("hook"):
            hook = stack.enter_context(hearing(net.address("hook")))
        made = Hosts(net, folder, keys, hook)
        with net.inside("server-1"):
            command_line(folder, environment, "server.py", "webhooks", "add", hook.url, "--from-start")
        for name in ("server-1", "server-2"):
            with net.inside(name):
                made.servers.append(_server(folder / name, server_root, environment))
                stack.callback(made.servers[-1].stop)
        _start_balancers(made, stack)
        for name, target in (("gateway-1", "back"), ("gateway-2", "server-2")):
            settings = GATEWAY | {"GATEWAY_ID": name, "GATEWAY_API_KEY_FILE": str(keys["gateways"])}
            with net.inside(name):
                (folder / name).mkdir()
                url = made.url(target)
                made.gateways.append(start_gateway(folder / name, url, DICOM, gateway_root, settings)[0])
                stack.callback(made.gateways[-1].stop)
        yield made


def _server(folder: Path, root: Path, environment: Mapping[str, str]) -> Process:
    folder.mkdir()
    return start_server(folder, HTTP, root, "0.0.0.0", **environment)[0]  # noqa: S104 - as above


def _start_balancers(made: Hosts, stack: ExitStack) -> None:
    gateways = [(name, f"{made.net.address(name)}:{DICOM}") for name in ("gateway-1", "gateway-2")]
    servers = [(name, f"{made.net.address(name)}:{HTTP}") for name in ("server-1", "server-2")]
    sections = {
        "front": listen("gateways", f"*:{DICOM}", gateways, OF_GATEWAYS),
        "back": listen("servers", f"*:{HTTP}", servers, OF_SERVERS),
    }
    for name, section in {**sections, "standby": sections["back"]}.items():
        (made.folder / name).mkdir()
        with made.net.inside(name):
            stack.callback(haproxy_process(made.folder / name, [section]).stop)


# --- who is told --------------------------------------------------------------------------------------------------


class Hook:
    """A webhook's receiver. It may be told twice, so it looks at the number, as docs/server.md says."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[Change] = []
        self.again = 0
        self._news = threading.Condition()

    def answer(self, request: Request) -> Answer:
        self.take(Change.model_validate_json(request.body))
        return Answer(204)

    def take(self, change: Change) -> None:
        with self._news:
            if self.seen and change.Number <= self.seen[-1].Number:
                self.again += 1
            else:
                self.seen.append(change)
            self._news.notify_all()

    def reach(self, number: int) -> None:
        """Wait until it was told so many; one that could not be told for long is tried again late."""
        with self._news:
            self._news.wait_for(lambda: len(self.seen) >= number, SEND_AGAIN_S)


@contextmanager
def hearing(address: str) -> Iterator[Hook]:
    """A receiver on a thread of its own; the calling thread is on its host."""
    hook = Hook()
    with http_server(hook.answer, (address, HTTP)) as url:
        hook.url = f"{url}/hook"
        yield hook


# --- one trial ----------------------------------------------------------------------------------------------------


@dataclass
class Cut(Trial):
    """What was seen of one round of partitions."""

    partitions: list[Partition] = field(default_factory=list)
    told_again: int = 0
    """Changes that the webhook's receiver was told more than once."""


def _sender(images: Sequence[Dataset], deadline: float, host: str, pause_s: float, seed: float) -> PacedSender:
    """Return a sender to one of the gateways' addresses: its images come as long as hosts are cut off."""
    return PacedSender(DICOM, images, deadline, pause_s, seed, host=host)


def partition_test(
    number: int, seed: str, done: Callable[[], None], roots: tuple[Path, Path], *, forgets: bool = False
) -> Cut:
    """Do one round of so many partitions, on hosts of its own; `roots` are the gateway's program and the server's."""
    rng = random.Random(seed)
    with (
        tempfile.TemporaryDirectory(prefix="scale-", ignore_cleanup_errors=True) as folder,
        hosts(Path(folder), *roots) as made,
        made.net.inside("follower"),
        _silent(),
    ):
        return asyncio.run(_trial(made, plan(rng, number), rng, done, forgets))


async def _trial(
    made: Hosts, lanes: list[list[Partition]], rng: random.Random, done: Callable[[], None], forgets: bool
) -> Cut:
    began = time.monotonic()
    cut = Cut(partitions=[partition for lane in lanes for partition in lane])

    def send() -> tuple[list[list[Dataset]], set[str]]:
        sent = _send_and_strike(made, lanes, rng, cut, done)
        made.drain()
        return sent

    async with made.client("back") as http, made.client("server-1") as direct:
        followers: list[Follower] = [StreamFollower(http, forgets=forgets), PageFollower(direct)]
        changes = await followed(http, followers, send, cut)
        await asyncio.to_thread(made.hook.reach, len(changes))
    judge_changes([changes, *(follower.seen for follower in followers), made.hook.seen], cut)
    cut.broken, cut.told_again = sum(follower.broken for follower in followers), made.hook.again
    cut.repeated = sum(len(gateway.events("report.delayed")) for gateway in made.gateways)
    cut.took_s = time.monotonic() - began
    return cut


def _send_and_strike(
    made: Hosts, lanes: list[list[Partition]], rng: random.Random, cut: Cut, done: Callable[[], None]
) -> tuple[list[list[Dataset]], set[str]]:
    """Send as long as hosts are cut off, and then what is left: the series sent, and what was acknowledged."""
    longest_s = max(sum(partition.seconds + sum(PAUSE_S) / 2 for partition in lane) for lane in lanes)
    deadline = time.monotonic() + longest_s + SEND_AGAIN_S
    split = synthetic_series(round(longest_s * IMAGES_PER_S))
    addresses = [made.net.address(host) for host in ("front", "gateway-1", "gateway-2")]
    over = threading.Event()
    again = round(TWICE * len(split))
    parts = [split[n::ASSOCIATIONS] + rng.sample(split, again) for n in range(ASSOCIATIONS)]
    senders = [
        _sender(rng.sample(part, len(part)), deadline, addresses[n % 3], ASSOCIATIONS / IMAGES_PER_S, rng.random())
        for n, part in enumerate(parts)
    ]

    def send_further(n: int, seed: float) -> tuple[list[list[Dataset]], list[PacedSender]]:
        one, sent, through = random.Random(seed), [], []
        while not over.is_set():
            sent.append(synthetic_series(one.randint(1, 10)))
            through.append(_sender(sent[-1], deadline, addresses[n % 3], 0.1, one.random()))
            through[-1].run()
        return sent, through

    with ThreadPoolExecutor(32, initializer=made.net.enter, initargs=("sender",)) as pool:
        sending = [pool.submit(sender.run) for sender in senders]
        further = [pool.submit(send_further, n, rng.random()) for n in range(FURTHER_SENDERS)]
        striking = [pool.submit(strike, made.net, lane, rng.random(), done) for lane in lanes]
        for lane in striking:
            lane.result()
        over.set()
        for sent in sending:
            sent.result()
        more = [one.result() for one in further]
    everyone = senders + [sender for _, some in more for sender in some]
    series = [split] + [one for sent, _ in more for one in sent]
    return series, cut.count(everyone, sum(map(len, series)))


def tables(cut: Cut) -> Iterator[Table]:
    """Tell what was cut, and what came of it."""
    links = Table("between", "partitions", "one way", "longest", box=MARKDOWN)
    for link in (*LINKS, *MOVES):
        some = [partition for partition in cut.partitions if partition.ends == link]
        if some:
            what = " and ".join(link) if not some[0].moves else f"the address of {link[0]} moves to {link[1]}"
            one_way = sum(len(partition.ways) == 1 for partition in some)
            links.add_row(what, str(len(some)), str(one_way), f"{max(p.seconds for p in some):.0f} s")
    yield links
    titles = ("acknowledged", "rounds cut short", "posts repeated", "followers broken off", "webhook told again")
    all_ = Table("partitions", *titles, "changes", "stored", "lost", "doubled", "took", box=MARKDOWN)
    numbers = (len(cut.partitions), cut.acknowledged, cut.cut_short, cut.repeated, cut.broken, cut.told_again)
    all_.add_row(*map(str, (*numbers, cut.changes, cut.stored, cut.lost, cut.doubled)), f"{cut.took_s:.0f} s")
    yield all_
