"""Promise: a saved store comes back to the bit, appears whole or not at all, and no damage to its file goes unseen."""

import errno
import json
import os
import zlib

import numpy as np
import pytest
from test_store import KINDS, POLICIES, go_on, lived_in, state_of

from fastprio import ScoreStore, _file
from fastprio.policies import LossPower, Policy

load_file = pytest.importorskip("safetensors.numpy").load_file


def small():
    store = ScoreStore(9, LossPower(ema=0.5), epochs=2, columns={"flag": "bit"})
    store.update([1, 2, 8], [0.5, 1.5, 3.0])
    store.tree.sample(2, seed=4, epoch=0, scheme="epoch")
    return store


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "store"
    small().save(path)
    return path


def parts(path):
    """The header as a dict, and the arrays' bytes."""
    return parted(path.read_bytes())


def parted(raw):
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def forge(path, header, body, text=None):
    """Writes a file whose checksum is right, whatever else is not."""
    path.write_bytes(forged(header, body, text))


def forged(header, body, text=None):
    if text is None:
        header["__metadata__"]["checksum"] = _file.NO_CHECKSUM
        text = json.dumps(header).encode()
    prefix = len(text).to_bytes(8, "little")
    checksum = f"{zlib.crc32(prefix + text + body):08x}".encode()
    return prefix + text.replace(b'"00000000"', b'"' + checksum + b'"', 1) + body


def forge_plain(path, change):
    """The same file with other plain values."""
    header, body = parts(path)
    plain = json.loads(header["__metadata__"]["fastprio"])
    change(plain)
    header["__metadata__"]["fastprio"] = json.dumps(plain)
    forge(path, header, body)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("size", [1, 8, 101, 5000])
def test_a_store_comes_back_to_the_bit_and_goes_on_alike(name, size, tmp_path):
    store = lived_in(max(size, 2), POLICIES[name](), columns=KINDS)
    store.set_priorities(np.arange(len(store)), np.arange(len(store)) + 1.0)
    store.tree.sample(1, seed=1, epoch=1, scheme="epoch")
    store.save(tmp_path / "store")
    loaded = ScoreStore.load(str(tmp_path / "store"))
    assert state_of(loaded) == state_of(store)
    assert go_on(loaded) == go_on(store)


def test_saving_twice_gives_the_same_bytes_and_replaces_the_file(tmp_path):
    lived_in(seed=2).save(tmp_path / "a")
    lived_in().save(tmp_path / "a")
    lived_in().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_any_reader_of_safetensors_reads_the_arrays(tmp_path):
    store = lived_in(columns=KINDS)
    store.tree.sample(3, seed=1, epoch=1, scheme="epoch")
    store.save(tmp_path / "store")
    arrays = load_file(tmp_path / "store")
    expected = {f"column.{name}": column for name, column in store.columns.items()}
    expected |= {"priorities": store.priorities, "policy.largest": store.policy.state["largest"]}
    assert arrays.keys() == expected.keys() | {"fresh", "learnt", "parked"}
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_arrays_of_every_dtype_and_shape_come_back(tmp_path):
    rng = np.random.default_rng(1)
    arrays = {name: rng.integers(0, 2, (3, 2)).astype(name) for name in _file.DTYPES}
    arrays |= {"empty": np.empty(0, np.float32), "none": np.empty((0, 4), np.int8), "scalar": np.array(2.5)}
    arrays |= {"strided": np.arange(20.0)[::3], "large": rng.random(2 * _file.PIECE // 8 + 3)}
    _file.write(tmp_path / "arrays", arrays, {"a": [1, None, "00000000", {"b": 0.1}]})
    read, plain = _file.read(tmp_path / "arrays")
    assert plain == {"a": [1, None, "00000000", {"b": 0.1}]}
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(read[name], array)


class Unregistered(Policy):
    name = "unregistered"


def test_a_policy_that_is_not_registered_is_passed(tmp_path):
    ScoreStore(5, Unregistered()).save(tmp_path / "store")
    with pytest.raises(ValueError, match=r"'unregistered': expected a Policy, .*or one of"):
        ScoreStore.load(tmp_path / "store")
    assert len(ScoreStore.load(tmp_path / "store", Unregistered())) == 5
    with pytest.raises(ValueError, match="policy is 'unregistered', this store's is 'loss'"):
        ScoreStore.load(tmp_path / "store", LossPower())


# Damage.


def test_every_truncation_is_refused(saved):
    raw = saved.read_bytes()
    for length in range(len(raw)):
        saved.write_bytes(raw[:length])
        with pytest.raises(ValueError, match="not a fastprio file, or not a whole one"):
            ScoreStore.load(saved)


def test_every_flipped_bit_is_refused(saved):
    raw = saved.read_bytes()
    with open(saved, "r+b") as file:
        for bit in range(8 * len(raw)):
            file.seek(bit >> 3)
            file.write(bytes([raw[bit >> 3] ^ 1 << (bit & 7)]))
            file.flush()
            with pytest.raises(ValueError, match="not a fastprio file, or not a whole one"):
                ScoreStore.load(saved)
            file.seek(bit >> 3)
            file.write(raw[bit >> 3 : (bit >> 3) + 1])
    assert state_of(ScoreStore.load(saved)) == state_of(small())


@pytest.mark.parametrize("content", [
    b"", b"\0" * 8, b"\0" * 100, b"\xff" * 100, b"{}" * 50, b"\x02" + b"\0" * 7 + b"{}",
    b"\x02" + b"\0" * 7 + b"[]", b"\x04" + b"\0" * 7 + b"null", b"PK\x03\x04" * 30,
])  # fmt: skip
def test_another_file_is_refused(content, saved):
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="not a fastprio file, or not a whole one"):
        ScoreStore.load(saved)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**32, 2**40, 2**63, 2**64 - 1])
def test_a_header_length_that_lies_is_refused(length, saved):
    raw = saved.read_bytes()
    saved.write_bytes(length.to_bytes(8, "little") + raw[8:])
    with pytest.raises(ValueError, match="not a fastprio file, or not a whole one"):
        ScoreStore.load(saved)


def entry(dtype="U8", shape=(9,), offsets=(0, 9)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "overlap": lambda h: h.update(fresh=entry(shape=[2], offsets=[0, 2])),
    "hole": lambda h: h["fresh"].update(data_offsets=[40, 42]),
    "backwards": lambda h: h["fresh"].update(data_offsets=[38, 36]),
    "negative offset": lambda h: h["priorities"].update(data_offsets=[-36, 0]),
    "beyond the end": lambda h: h.update(more=entry(shape=[2**40], offsets=[0, 2**40])),
    "negative shape": lambda h: h["priorities"].update(shape=[-9]),
    "two negatives": lambda h: h["priorities"].update(shape=[-3, -3]),
    "too long": lambda h: h["priorities"].update(shape=[2**62]),
    "overflow to nothing": lambda h: h["priorities"].update(shape=[2**32, 2**32], data_offsets=[0, 0]),
    "nothing times much": lambda h: h["priorities"].update(shape=[0, 2**80], data_offsets=[0, 0]),
    "infinite shape": lambda h: h["priorities"].update(shape=[float("inf")]),
    "nan shape": lambda h: h["priorities"].update(shape=[float("nan")]),
    "shape of text": lambda h: h["priorities"].update(shape=["nine"]),
    "shape no list": lambda h: h["priorities"].update(shape=9),
    "65 dimensions": lambda h: h["priorities"].update(shape=[9] + [1] * 64),
    "unknown dtype": lambda h: h["priorities"].update(dtype="F8_E4M3"),
    "dtype no text": lambda h: h["priorities"].update(dtype=[]),
    "no offsets": lambda h: h["priorities"].pop("data_offsets"),
    "entry no dict": lambda h: h.update(priorities=3),
    "no array": lambda h: [h.pop(name) for name in list(h) if name != "__metadata__"],
    "no plain values": lambda h: h["__metadata__"].pop("fastprio"),
    "plain values no JSON": lambda h: h["__metadata__"].update(fastprio="{"),
    "plain values no dict": lambda h: h["__metadata__"].update(fastprio="[1]"),
    "plain values no text": lambda h: h["__metadata__"].update(fastprio=3),
    "nested too deep": lambda h: h["__metadata__"].update(fastprio="[" * 100_000),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_though_its_checksum_is_right(lie, saved):
    header, body = parts(saved)
    LIES[lie](header)
    forge(saved, header, body)
    with pytest.raises(ValueError, match=r"."):
        ScoreStore.load(saved)


@pytest.mark.parametrize("twice", [b'"priorities": ', b'\\"seed\\": ', b'"checksum": '])
def test_a_name_that_is_there_twice_is_refused(twice, saved):
    header, body = parts(saved)
    header["__metadata__"]["checksum"] = _file.NO_CHECKSUM
    text = json.dumps(header).encode()
    begin = text.index(twice)
    end = text.index(b", " if twice != b'"priorities": ' else b"}, ", begin) + (3 if b"prio" in twice else 2)
    forge(saved, None, body, text=text[:end] + text[begin:end] + text[end:])
    with pytest.raises(ValueError, match=r"is there twice"):
        ScoreStore.load(saved)


@pytest.mark.parametrize("extra", [b"\0", b"x" * 1000])
def test_trailing_bytes_are_refused(extra, saved):
    header, body = parts(saved)
    forge(saved, header, body + extra)
    with pytest.raises(ValueError, match="bytes after the last array"):
        ScoreStore.load(saved)


def test_a_header_nested_too_deep_is_refused(saved):
    forge(saved, None, b"", text=b'{"__metadata__": {"checksum": "00000000"}, "a": ' + b"[" * 200_000)
    with pytest.raises(ValueError, match="not a fastprio file, or not a whole one"):
        ScoreStore.load(saved)


PLAIN_LIES = {
    "newer": (lambda p: p.update(format=2), "format 2.*upgrade"),
    "newer, of a new shape": (lambda p: (p.clear(), p.update(format=2)), "format 2.*upgrade"),
    "size": (lambda p: p.update(size=10), "."),
    "size zero": (lambda p: p.update(size=0), "."),
    "size of text": (lambda p: p.update(size="9"), "."),
    "size huge": (lambda p: p.update(size=2**40), "."),
    "policy": (lambda p: p.update(policy="nothing"), "policy = 'nothing'"),
    "policy's arguments": (lambda p: p["policy_config"].update(gamma=1), "gamma"),
    "policy's values": (lambda p: p["policy_config"].update(alpha=-1), "alpha"),
    "no policy": (lambda p: p.pop("policy"), "policy"),
    "columns": (lambda p: p["columns"].update(more="float32"), "more"),
    "column of no kind": (lambda p: p["columns"].update(flag="nothing"), "."),
    "parked": (lambda p: p.update(parked=[0, 0]), "."),
    "parked negative": (lambda p: p.update(parked=[-1, 0, 1]), "."),
    "clock": (lambda p: p.update(clock=None), "."),
    "max_priority": (lambda p: p.update(max_priority=0.0), "max_priority"),
    "max_priority of text": (lambda p: p.update(max_priority="1"), "."),
}


@pytest.mark.parametrize("lie", PLAIN_LIES)
def test_plain_values_that_lie_are_refused_though_the_checksum_is_right(lie, saved):
    change, message = PLAIN_LIES[lie]
    forge_plain(saved, change)
    with pytest.raises(ValueError, match=message):
        ScoreStore.load(saved)


def test_the_forger_can_write_a_whole_file(saved):  # so that the lies above are what is refused
    header, body = parts(saved)
    forge(saved, header, body)
    assert state_of(ScoreStore.load(saved)) == state_of(small())
    forge_plain(saved, lambda plain: plain.update(seed=5))
    assert ScoreStore.load(saved).seed == 5


@pytest.fixture
def of_pieces(tmp_path):
    """A file whose arrays are read in several pieces."""
    n = 2 * _file.PIECE // 4 + 100
    store = ScoreStore(n, columns={"flag": "bit"})
    store.tree.fill(np.random.default_rng(1).random(n, np.float32))
    store.column("loss")[:] = np.arange(n)
    store.save(tmp_path / "store")
    return tmp_path / "store", store


def test_a_file_of_several_pieces_comes_back_and_its_damage_is_named_before_what_follows_from_it(of_pieces):
    path, store = of_pieces
    assert state_of(ScoreStore.load(path)) == state_of(store)
    raw = path.read_bytes()
    body = 8 + int.from_bytes(raw[:8], "little")
    sign = 0x80
    for at in (body + 3, body + _file.PIECE + 7, body + 2 * _file.PIECE + 43, len(raw) - 9):
        with open(path, "r+b") as file:  # a negative priority in the first three, which the tree refuses too
            file.seek(at)
            file.write(bytes([raw[at] ^ sign]))
        with pytest.raises(ValueError, match="not a fastprio file, or not a whole one: the checksum is"):
            ScoreStore.load(path)
        path.write_bytes(raw)


def test_a_bad_priority_under_a_right_checksum_is_named_by_its_place(of_pieces):
    path, _ = of_pieces
    header, body = parts(path)
    at = _file.PIECE // 4 + 5
    forge(path, header, body[: 4 * at + 3] + bytes([body[4 * at + 3] | 0x80]) + body[4 * at + 4 :])
    with pytest.raises(ValueError, match=rf"not a store .*priorities\[{at}\] = -"):
        ScoreStore.load(path)


# Failures of the disk.


@pytest.mark.parametrize("call", ["fsync", "replace", "fdopen"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_leaves_the_old_file_whole_and_nothing_beside_it(call, code, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_, **__):
        raise OSError(code, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="injected"):
            lived_in().save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
    lived_in().save(saved)
    assert state_of(ScoreStore.load(saved)) == state_of(lived_in())


@pytest.mark.parametrize("failing", [1, 2])
def test_whichever_sync_fails_a_whole_file_remains(failing, saved, monkeypatch):
    calls, sync = [], os.fsync

    def fsync(handle):
        calls.append(handle)
        if len(calls) == failing:
            raise OSError(errno.EIO, "injected")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="injected"):
            lived_in().save(saved)
    assert state_of(ScoreStore.load(saved)) == state_of(small() if failing == 1 else lived_in())
    assert os.listdir(saved.parent) == [saved.name]


def test_the_file_is_synced_before_it_is_renamed_and_the_folder_after(saved, monkeypatch):
    order, sync, replace = [], os.fsync, os.replace

    def fsync(handle):
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("rename"), replace(*paths)))
    small().save(saved)
    expected = ["file", "rename", "folder"]
    assert order == expected or not os.path.isdir("/proc/self/fd")


def test_a_store_that_cannot_be_written_leaves_nothing_behind(saved, tmp_path):
    before = saved.read_bytes()
    with pytest.raises(OSError, match="absent"):
        small().save(tmp_path / "absent" / "store")
    with pytest.raises(ValueError, match="complex64"):  # what no file could hold is refused at once
        ScoreStore(3, columns={"complex": "complex64"})
    assert saved.read_bytes() == before
    assert os.listdir(tmp_path) == [saved.name]
