"""A store's whole state as arrays and plain values, and the way back; the file of it is _file.py's."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastprio import _file
from fastprio._arrays import integer
from fastprio.policies.base import Clock, Policy, make

if TYPE_CHECKING:
    from fastprio._arrays import Float32
    from fastprio.store import ScoreStore

FORMAT = 1
"""The newest format that this version writes and reads."""
KEPT = "kept."
"""Before the names of arrays of what is kept with the store."""


class State(NamedTuple):
    """What a saved state has beside the arrays of the store's size."""

    policy: dict[str, Any]
    policy_arrays: list[str]
    clock: Clock
    seed: int
    skipped_nonfinite: int
    was_scored: bool
    kept: Mapping[str, Any] | None


def pack(store: ScoreStore) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays by name, views of the store's own, and the plain values. The caller holds the store's lock."""
    arrays = {"priorities": store.tree.priorities, **_places(store)}
    kept = store.record()
    active, *_, bits = store.tree.parked
    if active:
        arrays["parked"] = np.frombuffer(bits, np.uint8)
    arrays.update({f"policy.{name}": v for name, v in store.policy.state.items() if isinstance(v, np.ndarray)})
    if kept is not None:
        arrays.update({KEPT + name: array for name, array in kept[0].items()})
    return arrays, {**_plain_values(store), "kept": None if kept is None else kept[1]}


def _plain_values(store: ScoreStore) -> dict[str, Any]:
    active, seed, epoch, following, _ = store.tree.parked
    state = {name: copy.deepcopy(v) for name, v in store.policy.state.items() if not isinstance(v, np.ndarray)}
    return {
        "format": FORMAT,
        "size": len(store),
        "policy": store.policy.name,
        "policy_config": _plain(store.policy.config()),
        "policy_state": state,
        "columns": {name: list(kind) if isinstance(kind, tuple) else kind for name, kind in store.types.items()},
        "epochs": store.epochs,
        "on_nonfinite": store.on_nonfinite,
        "max_priority": store.tree.max_priority,
        "parked": [seed, epoch, following] if active else None,
        "clock": [store.clock.epoch, store.clock.step, store.clock.progress],
        "seed": store.seed,
        "skipped_nonfinite": store.skipped_nonfinite,
        "was_scored": store.was_scored,
    }


def unpack(store: ScoreStore, arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Checks everything, then writes: ValueError, TypeError or KeyError leave the store as it was."""
    state = _checked(store, arrays, plain)
    store.own_policy()
    with store.lock:
        # The tree checks its part itself before it writes, and is the last that can refuse.
        store.tree.restore(arrays["priorities"], plain["max_priority"], plain["parked"], arrays.get("parked"))
        for name, array in _places(store).items():
            array[...] = arrays[name]
        _take_over(store, state, arrays)


def load(
    path: str | os.PathLike[str], new: Callable[..., ScoreStore], policy: str | Policy | None = None
) -> ScoreStore:
    """The store of a file, made by ``new(size, policy, epochs=, on_nonfinite=, columns=)`` and read straight into.

    Raises: ValueError if the file is damaged, of a newer version, or of another policy.
    """
    made: list[tuple[ScoreStore, State]] = []

    def destinations(plain: Any, entries: Mapping[str, _file.Entry]) -> dict[str, Any]:
        with _refused(path):
            check_format(plain)
            chosen = make(plain["policy"] if policy is None else policy, **plain["policy_config"])
            _same("policy", plain["policy"], chosen.name)
            kinds = {name: tuple(k) if isinstance(k, list) else k for name, k in plain["columns"].items()}
            extra = {name: kind for name, kind in kinds.items() if name not in chosen.columns}
            _check_extent(plain["size"], {**extra, **chosen.columns}, entries)
            store = new(
                plain["size"], chosen, epochs=plain["epochs"], on_nonfinite=plain["on_nonfinite"], columns=extra
            )
            made.append((store, _checked(store, entries, plain)))
        begin = 0

        def write(piece: Float32) -> None:
            nonlocal begin
            with _refused(path):
                store.tree.write(begin, piece)
            begin += len(piece)

        return {**_places(store), "priorities": write}

    arrays, plain = _file.read(path, destinations)
    store, state = made[0]
    with _refused(path):
        store.own_policy()
        store.tree.settle(plain["max_priority"], plain["parked"], arrays.get("parked"))
        _take_over(store, state, arrays)
    return store


def _check_extent(size: Any, kinds: Mapping[str, Any], entries: Mapping[str, _file.Entry]) -> None:
    """ValueError if a store of so many examples would be larger than what there is of it in the file.

    Before it is made: a file of a few bytes may say that it has billions of examples.
    """
    n = entries["priorities"].shape[0] if entries["priorities"].shape else 0
    if size != n:
        raise ValueError(f"size = {size!r}: there are {n} priorities")
    for name, kind in kinds.items():
        shape = entries[f"column.{name}"].shape
        expected = ((n + 7) // 8,) if kind == "bit" else (n,) if isinstance(kind, str) else (n, *kind[1:])
        if shape != expected:
            raise ValueError(f"column {name!r}, {kind!r} of {n} examples: the file has {list(shape)}")


def check_format(plain: Mapping[str, Any], newest: int = FORMAT) -> None:
    """ValueError for a state of a newer version than ``newest``."""
    if integer("format", plain["format"], 1) > newest:
        raise ValueError(f"format {plain['format']}: this version of fastprio reads up to {newest}; upgrade it")


def _places(store: ScoreStore) -> dict[str, Any]:
    """Where the arrays of a state go that have the size of the store, but for the tree's."""
    return {"fresh": store.fresh, "learnt": store.learnt} | {
        f"column.{name}": column for name, column in store.columns.items()
    }


def _checked(store: ScoreStore, arrays: Mapping[str, Any], plain: Mapping[str, Any]) -> State:
    """The small part of a state. ``arrays``: whatever has their dtypes and shapes. Raises as ``unpack``."""
    here = _plain_values(store)
    for what in ("size", "policy", "columns", "policy_config"):
        _same(what, plain[what], here[what])
    kept = {f"policy.{name}": v for name, v in store.policy.state.items() if isinstance(v, np.ndarray)}
    for name, array in (_places(store) | kept | {"priorities": store.tree.priorities}).items():
        if name not in arrays or arrays[name].shape != array.shape or arrays[name].dtype != array.dtype:
            raise ValueError(f"the state lacks {name}, {array.dtype} {list(array.shape)}")
    if set(plain["policy_state"]) != set(here["policy_state"]):
        raise ValueError(f"the state's policy_state is {plain['policy_state']!r}")
    if len(plain["clock"]) != 3:
        raise ValueError(f"clock = {plain['clock']}: expected epoch, step and progress")
    epoch, step, progress = plain["clock"]
    clock = Clock(integer("epoch", epoch, 0, (1 << 32) - 1), integer("step", step, 0), float(progress))
    seed = integer("seed", plain["seed"], 0, (1 << 64) - 1)
    skipped = integer("skipped_nonfinite", plain["skipped_nonfinite"], 0)
    return State(
        copy.deepcopy(dict(plain["policy_state"])),
        list(kept),
        clock,
        seed,
        skipped,
        bool(plain.get("was_scored", False)),
        plain.get("kept"),
    )


def _same(what: str, said: Any, here: Any) -> None:
    if said != here:
        raise ValueError(f"the state's {what} is {said!r}, this store's is {here!r}")


def _take_over(store: ScoreStore, state: State, arrays: Mapping[str, Any]) -> None:
    store.policy.state.update(state.policy)
    store.policy.state.update({name.removeprefix("policy."): arrays[name] for name in state.policy_arrays})
    store.clock, store.seed, store.skipped_nonfinite = state.clock, state.seed, state.skipped_nonfinite
    store.was_scored = state.was_scored
    kept = {name.removeprefix(KEPT): array for name, array in arrays.items() if name.startswith(KEPT)}
    store.forget_keeper(None if state.kept is None else (kept, copy.deepcopy(dict(state.kept))))


@contextlib.contextmanager
def _refused(path: str | os.PathLike[str]) -> Iterator[None]:
    """Names the file in what is raised about a whole file that holds no store that fits."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = repr(error) if isinstance(error, (KeyError, AttributeError)) else str(error)
        raise ValueError(f"{os.fspath(path)}: not a store that this version can load: {why}") from error


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    # As it comes back from JSON, so that what was saved compares equal; numpy's numbers as Python's.
    plain: dict[str, Any] = json.loads(json.dumps(config, default=_number))
    return plain


def _number(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"policy_config: {value!r} is no plain value, and cannot be saved")
