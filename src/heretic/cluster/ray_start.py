"""Starts a Ray for this process alone, or joins a cluster; says what may be joined."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Literal

from heretic.cluster.ray_crew import Share
from heretic.errors import HereticError
from heretic.system.display import safe_line
from heretic.system.machine import usable_cores
from heretic.system.optional import require

LEAST_STORE = 100_000_000
"""Bytes of the object store at least; Ray refuses less than 75 million."""

AUTHENTICATION = "RAY_AUTH_MODE"
"""Ray's variable; `token` lets in nobody without the cluster's token."""

_log = logging.getLogger(__name__)

_STRANGER = (
    "import sys, ray\n"
    "ray.init(address=sys.argv[1], configure_logging=False, log_to_driver=False)\n"
    "print('joined as a stranger', flush=True)\n"
)
_JOINED = "joined as a stranger"
_PROBE_SECONDS = 60
_REMEDY = (
    "Start it with RAY_AUTH_MODE=token and a token, and give this command the same; or say "
    "--allow-unauthenticated if nobody else reaches it."
)
_REFUSAL = "InvalidAuthToken"


def ray_package() -> ModuleType:
    """Ray, imported.

    Raises:
        HereticError: It is not installed.
    """
    with _environment({"RAY_USAGE_STATS_ENABLED": "0"}):
        return require("ray", extra="ray", purpose="Searching with workers")


@contextmanager
def local_ray(gpus: int, room: int) -> Iterator[None]:
    """A Ray of this process, which ends with the context.

    It listens on loopback only, has a token that no file holds, no dashboard and no telemetry, and
    keeps its files in a folder that goes with it. A Ray that the program runs already is used.

    Args:
        gpus: GPUs that workers may take.
        room: Bytes that are sent to workers, for the size of the object store.

    Raises:
        HereticError: Ray is not installed, does not start, or would listen to other machines.
    """
    own = {
        "RAY_USAGE_STATS_ENABLED": "0",
        AUTHENTICATION: "token",
        "RAY_AUTH_TOKEN": _token(),
        # Ray gives workers the niceness 15: beside other programs they would hardly run.
        "RAY_worker_niceness": "0",
        # Ray's own switch for addresses that only this machine reaches, whatever its name says.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    with _environment(own):  # before the import: Ray reads some of it then
        is_closed = _imported_closed()
        ray = ray_package()
        if ray.is_initialized():
            yield
            return
        if not is_closed:
            raise HereticError(
                "Ray was imported before the search, so it would listen to other machines.",
                remedy="Import it later, or start it yourself (ray.init()): the search uses it.",
            )
        folder = tempfile.mkdtemp(prefix="heretic-", dir=_short_folder())
        try:
            with _started(
                ray,
                address="local",
                num_cpus=usable_cores(),
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=max(LEAST_STORE, 2 * room),
                _node_ip_address="127.0.0.1",
                # Ray opens this to all users of the machine, but not the folder above it.
                _temp_dir=str(Path(folder) / "ray"),
            ):
                _check_loopback(ray)
                yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def joined_ray(address: str, *, allow_unauthenticated: bool) -> Iterator[None]:
    """The Ray cluster at an address, of which this machine is a node.

    Nothing is sent to it, this process's token included, before it has refused a wrong one.

    Raises:
        HereticError: As `check_address`; or the cluster cannot be reached, or lets in anybody.
    """
    check_address(address, allow_unauthenticated=allow_unauthenticated)
    ray = ray_package()
    found = _resolved(address)  # once: what is asked is what is joined
    if not allow_unauthenticated:
        _check_closed(found)
    with _started(ray, address=found):
        yield


def check_address(address: str, *, allow_unauthenticated: bool) -> None:
    """Refuse what cannot be joined, before any work.

    Raises:
        HereticError: The address is one of a Ray client; or this process has no token for it, and
            the user did not allow that.
    """
    if "://" in address:
        raise HereticError(
            f"{safe_line(address)} is an address for Ray clients, which are no nodes of a cluster.",
            remedy="Start it on a node of the cluster, with auto or the head's HOST:PORT.",
        )
    if not allow_unauthenticated and os.environ.get(AUTHENTICATION, "").lower() != "token":
        raise HereticError(
            f"This process does not say that it uses a token ({AUTHENTICATION} is not token), so "
            f"the Ray cluster at {safe_line(address)} is not joined: whoever reaches a cluster "
            "without one can run code on its nodes.",
            remedy=_REMEDY,
        )


def check_reachable(address: str, seconds: float = 5.0) -> None:
    """Say that nothing listens where a cluster should be; nothing is sent there.

    Ray is imported only for the address `auto`: a process that imports it early can start none that
    is closed to others (see `local_ray`).

    Raises:
        HereticError: So it is; or the address is `auto`, and no cluster is known here.
    """
    found = address
    if address == "auto":
        ray_package()
        found = _resolved(address)
    host, _, port = found.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
            pass
    except (OSError, ValueError) as error:
        raise _unreachable(address, safe_line(str(error))) from error


def _resolved(address: str) -> str:
    """HOST:PORT of a cluster, also where the address is `auto`.

    Raises:
        HereticError: There is no such cluster.
    """
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found = canonicalize_bootstrap_address(address)
    except Exception as error:
        raise _unreachable(address, safe_line(str(error))[:200]) from error
    if not found:
        raise _unreachable(address, "none runs here")
    return str(found)


def _check_closed(address: str) -> None:
    """Raise unless a cluster refuses strangers.

    Raises:
        HereticError: It does not, or it does not answer.
    """
    answer = answer_to_stranger(address)
    if answer == "joined":
        raise HereticError(
            f"The Ray cluster at {safe_line(address)} has no authentication (it did not refuse a "
            "process with a wrong token): whoever reaches it can run code on its nodes and read "
            "what is sent to them.",
            remedy=_REMEDY,
        )
    if answer == "unclear":
        raise _unreachable(address, "it did not say that it refuses a wrong token")


def answer_to_stranger(address: str) -> Literal["refused", "joined", "unclear"]:
    """What a cluster does with a process that has a wrong token; `refused` if it says why."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")},
        AUTHENTICATION: "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with subprocess.Popen(  # noqa: S603 (this interpreter)
        # -P: a `ray.py` that lies in the working directory is not imported.
        [sys.executable, "-P", "-c", _STRANGER, address],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as stranger:
        end = threading.Timer(_PROBE_SECONDS, stranger.kill)
        end.start()
        try:
            assert stranger.stdout is not None
            for line in stranger.stdout:
                if _REFUSAL in line:
                    return "refused"
                if line.startswith(_JOINED):
                    return "joined"
            return "unclear"
        finally:
            end.cancel()
            stranger.kill()  # it would try again for a minute


def share_of(nodes: Sequence[Mapping[str, Any]], workers: int, gpus: int) -> Share:
    """What each worker takes of its node: as many processors as let all workers have a place.

    Args:
        nodes: What each node has (`CPU`, `GPU`), as Ray counts it.
        workers: Number of workers.
        gpus: GPUs of each.
    """
    most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    for cpus in range(most, 0, -1):
        if sum(_places(node, cpus, gpus) for node in nodes) >= workers:
            return Share(cpus, cpus, gpus)
    return Share(1, 0, gpus)


def nodes_of_ray() -> list[Mapping[str, Any]]:
    """What each node has of the Ray that this process is connected to."""
    return [node["Resources"] for node in ray_package().nodes() if node["Alive"]]


def _places(node: Mapping[str, Any], cpus: int, gpus: int) -> int:
    places = int(node.get("CPU", 0)) // cpus
    return min(places, int(node.get("GPU", 0)) // gpus) if gpus else places


def _unreachable(address: str, why: str) -> HereticError:
    return HereticError(
        f"The Ray cluster at {safe_line(address)} cannot be joined: {why}.",
        remedy="`ray status` says whether a cluster runs; name it by its head's HOST:PORT.",
    )


@contextmanager
def _started(ray: ModuleType, **arguments: Any) -> Iterator[None]:
    """A connection to Ray, which ends with the context.

    Raises:
        HereticError: There is none.
    """
    with _quiet_ray():
        try:
            with held_signals():
                ray.init(
                    configure_logging=False,
                    log_to_driver=False,
                    # Else workers get this process's working directory on their path, before all
                    # packages: a `torch.py` that lies there would run in them.
                    job_config=ray.job_config.JobConfig(_client_job=True),
                    **arguments,
                )
        except Exception as error:
            ray.shutdown()
            raise HereticError(
                f"Ray does not start: {safe_line(str(error))[:300]}",
                remedy="`ray status` says whether a cluster runs; without --workers no Ray is "
                "needed.",
            ) from error
        except BaseException:
            ray.shutdown()
            raise
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _quiet_ray() -> Iterator[None]:
    """Log what Ray's own processes tell of losses: the pool tells of them in its own words.

    Ray prints it, as paragraphs after "(raylet)", on standard output, whatever it was told of logs.
    """
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    module: Any = sys.modules.get("ray._private.worker")
    printed = getattr(module, "print_to_stdstream", None)  # None: another release

    def log(data: Mapping[str, Any], *_: object, **__: object) -> None:
        lines = " ".join(map(str, data.get("lines", ())))
        _log.info("Ray's %s: %s", data.get("pid"), safe_line(lines))

    if printed is not None:
        module.print_to_stdstream = log
    try:
        yield
    finally:
        if printed is not None:
            module.print_to_stdstream = printed
        logger.setLevel(level)


@contextmanager
def held_signals() -> Iterator[None]:
    """Keep this process's handlers of signals while Ray starts, and hold the signals back.

    Ray replaces the handler of SIGTERM; and where an exception cuts its start short, it forgets
    the processes that it has started. A second signal is not held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        if len(held) > 1:
            raise KeyboardInterrupt

    try:
        for number in handlers:
            signal.signal(number, hold)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def _check_loopback(ray: ModuleType) -> None:
    """Raise if other machines could reach this Ray.

    Raises:
        HereticError: They could.
    """
    (node,) = ray.nodes()
    if not ip_address(node["NodeManagerAddress"]).is_loopback:
        raise HereticError(
            f"Ray listens at {node['NodeManagerAddress']}, where other machines reach it.",
            remedy="This release of Ray is not the one that was tested: see constraints.txt.",
        )


@cache
def _imported_closed() -> bool:
    """Import Ray, if it is not; returns whether the variables of `local_ray` were set before."""
    is_first = "ray" not in sys.modules
    ray_package()
    return is_first


@cache
def _token() -> str:
    """One token a process: Ray keeps the first that it sees."""
    return secrets.token_hex(32)


def _short_folder() -> Path:
    """Where temporary files are; names of sockets in it must stay short."""
    return Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())  # noqa: S108


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables while the context lasts; what it starts inherits them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
