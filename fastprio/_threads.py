"""How many threads a call of the core may use."""

from __future__ import annotations

from fastprio import _core
from fastprio._arrays import integer


def get_num_threads() -> int:
    """How many threads one call may use: what ``set_num_threads`` set, else the environment variable
    ``FASTPRIO_NUM_THREADS``, else the cores that this process may run on.

    Raises: ValueError: the variable is not an integer in [1, 1024]. It is read once, when the number is first needed.
    """
    return _core.get_num_threads()


def set_num_threads(n: int) -> None:
    """Sets how many threads one call may use; 1 never starts any. Results are the same for every number.

    Threads are started by calls with enough to do (a million examples, tens of thousands of draws), and have
    ended when the call returns. A batch of a few hundred never starts one.

    Args:
        n: in [1, 1024].

    Raises: TypeError, ValueError: n is not an integer, or out of range.
    Thread safety: may be called at any time; calls under way go on with the number they had.
    """
    _core.set_num_threads(integer("n", n, 1, _core.MAX_THREADS))
