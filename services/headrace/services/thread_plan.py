"""How many threads compute in a shard, and which processor each of them is bound to."""

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.services.processors import Processors, format_processors, parse_processors

AUTO, NONE = "auto", "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadPlan:
    """The threads of one shard."""

    count: int
    processors: tuple[int, ...] = ()
    """One for each thread; empty leaves them to the system."""

    def explain(self) -> str:
        """Returns a line for the log."""
        threads = f"{self.count or 'the usual number of'} compute thread{'' if self.count == 1 else 's'}"
        if not self.processors:
            return f"{threads}, not bound to processors"
        return f"{threads}, each bound to one of the processors {format_processors(self.processors)}"


def check_binding(text: str) -> str:
    """Returns the text if it is `auto`, `none` or a list of processors.

    Raises:
        ValueError: it is none of these.
    """
    if text not in {AUTO, NONE}:
        parse_processors(text)
    return text


def plan_threads(binding: str, thread_count: int, processors: Processors) -> ThreadPlan:
    """Decides for a shard that knows of no other on its machine.

    NOTE: two threads that the system puts on the same core, while another idles,
    wait for each other at every operator; a thread that is bound cannot be moved
    away from a core that others use, though. So `auto` binds only what takes all
    cores alike. Fewer threads may be meant to leave room for another shard,
    which would choose the very same cores.

    Args:
        binding: `auto`, `none`, or a list of processors.
        thread_count: 0 takes one for each core, or for each processor of a list.
        processors: What the process may use.

    Raises:
        ValueError: the list has processors that the process may not use, or fewer than threads.
    """
    if binding not in {AUTO, NONE}:
        return _plan_list(parse_processors(binding), thread_count, processors)
    count = thread_count or usable_core_count(processors)
    if binding == AUTO and processors.allowed and (processors.quota or count) >= count:
        for whole in (processors.cores, processors.allowed):
            if count == len(whole):
                return ThreadPlan(count=count, processors=whole)
    return ThreadPlan(count=count)


def share_processors(binding: str, thread_count: int, shard_count: int, processors: Processors) -> list[ThreadPlan]:
    """Divides a machine among the shards of one supervisor, so that no two of them take the same core.

    Raises:
        ValueError: a list has fewer processors than there are shards, or see `plan_threads`.
    """
    if binding not in {AUTO, NONE}:
        numbers = parse_processors(binding)
        if len(numbers) < shard_count:
            raise ValueError(f"{len(numbers)} processors are too few for {shard_count} shards")
        return [_plan_list(share, thread_count, processors) for share in _shares(numbers, shard_count)]
    count = thread_count or max(1, usable_core_count(processors) // shard_count)
    has_room = count * shard_count <= min(len(processors.cores), processors.quota or len(processors.cores))
    if binding == NONE or not processors.allowed or not has_room:
        return [ThreadPlan(count=count)] * shard_count
    return [ThreadPlan(count=count, processors=share[:count]) for share in _shares(processors.cores, shard_count)]


def usable_core_count(processors: Processors) -> int:
    """Returns how many threads can compute at a time."""
    quota = len(processors.cores) if processors.quota is None else int(processors.quota)
    return max(1, min(len(processors.cores), quota))


def _plan_list(numbers: tuple[int, ...], thread_count: int, processors: Processors) -> ThreadPlan:
    if missing := sorted(set(numbers) - set(processors.allowed)):
        raise ValueError(
            f"the process may not use the processor {missing[0]}, only {format_processors(processors.allowed)}"
        )
    if thread_count > len(numbers):
        raise ValueError(f"{len(numbers)} processors are too few for {thread_count} threads")
    return ThreadPlan(count=thread_count or len(numbers), processors=numbers[: thread_count or len(numbers)])


def _shares(numbers: Sequence[int], shard_count: int) -> list[tuple[int, ...]]:
    """Returns as many runs of neighbours, all of the same length."""
    size = len(numbers) // shard_count
    return [tuple(numbers[size * index : size * (index + 1)]) for index in range(shard_count)]
