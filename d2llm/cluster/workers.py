"""Actors of a Ray cluster: started, asked side by side, started again where one died."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from d2llm.errors import InputError, MissingError

# Where objects lie on their way between processes: scores of a batch of queries, 64 MB at a time, and their copies.
_STORE = 256 << 20
# How often a call is made again because the process that had it died.
_AGAIN = 2


def connect(address: str | None = None, workers: int = 2) -> None:
    """Join a Ray cluster, if this process is not in one yet.

    Args:
        address: such as ``ray://host:10001``, or "auto" for one on this machine; None starts one here, of ``workers``
            processes, which ends with this one. Every machine needs this package and the files by the same paths.
        workers: processors of a cluster that is started here.

    Raises:
        InputError: if there is no cluster at the address.
    """
    if ray.is_initialized():
        return
    # Ray reports its use to its makers otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": _STORE}
    try:
        ray.init(
            address="local" if address is None else address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **(here if address is None else {}),
        )
    except ConnectionError as error:
        raise InputError(f"address: expected that of a Ray cluster, got {address!r:.200} ({error!s:.200})") from None


class Workers:
    """Actors of one kind, on as many machines as there are.

    Args:
        kind: a class; its actors are asked by the names of its methods, which must change nothing: a call may be made
            again.
        arguments: of each actor.
    """

    def __init__(self, kind: type, arguments: Sequence[tuple[Any, ...]]) -> None:
        # None holds a processor for itself: more indexes can be open at once than fill the cluster.
        options = {"max_restarts": -1, "max_task_retries": _AGAIN, "scheduling_strategy": "SPREAD"}
        actor: Any = ray.remote(kind).options(**options)
        self._actors = [actor.remote(*each) for each in arguments]

    def __len__(self) -> int:
        return len(self._actors)

    def start(self, number: int, method: str, *arguments: Any) -> Any:
        """Ask one actor; what it will answer is for :meth:`answers`."""
        return getattr(self._actors[number], method).remote(*arguments)

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """What every actor answers, in order; errors as of :meth:`answers`."""
        # Put once for all of them.
        shared = [ray.put(each) for each in arguments]
        return self.answers([self.start(number, method, *shared) for number in range(len(self))])

    def answers(self, started: Sequence[Any]) -> list[Any]:
        """What was answered, in the order that it was asked.

        Raises:
            MissingError: if an actor died each time that it was asked, or could not start; what it raised itself.
        """
        try:
            return list(ray.get(list(started)))
        except RayActorError as error:
            # Of what a worker could not start for, the last line says why.
            reason = str(error).strip().rpartition("\n")[2]
            raise MissingError(
                f"cluster: a worker died whenever it was asked, or could not start: {reason:.200}"
            ) from None
        except RayTaskError as error:
            raise error.cause from None

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors:
            ray.kill(actor)
