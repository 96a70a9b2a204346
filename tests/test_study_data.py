"""Promise: every form of data set is read as it was written, normalised by channel, or refused with the reason."""

from __future__ import annotations

import gzip
import importlib
import itertools
import struct
import sys

import numpy as np
import pytest
import torch
from study_helpers import CIFAR, idx, write_cifar, write_images

from fastprio.cli import look_here
from fastprio.study.data import Batches, load
from fastprio.study.files import StudyError, read_cifar, read_idx

NUMBERS = itertools.count()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a module into the current folder and returns the "module:sets" of it; nothing of it stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    look_here()
    made = []

    def write(lines: str) -> str:
        made.append(f"own_{next(NUMBERS)}")  # a new name: modules are found once
        heading = "import numpy as np\nimport torch\nfrom PIL import Image\n"
        (tmp_path / f"{made[-1]}.py").write_text(heading + lines)
        importlib.invalidate_caches()  # or a module as young as the last look into the folder is not found
        return f"{made[-1]}:sets"

    yield write
    for name in made:
        sys.modules.pop(name, None)


def normalised(images: np.ndarray, like: np.ndarray) -> np.ndarray:
    """``images`` less the mean and over the deviation of each channel of ``like``, both [n, C, H, W], in float64."""
    mean, deviation = (of(like.astype(np.float64), axis=(0, 2, 3), keepdims=True) for of in (np.mean, np.std))
    return (images - mean) / np.where(deviation == 0, 1, deviation)


def assert_read(found, train, train_labels, test, test_labels):
    """The data set holds these pixels, normalised, and these labels."""
    for split, images, labels in ((found.train, train, train_labels), (found.test, test, test_labels)):
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        np.testing.assert_allclose(split.images.numpy(), normalised(images, train), rtol=0, atol=1e-5)
        assert split.labels.tolist() == list(labels)
    assert found.classes == max(*train_labels, *test_labels) + 1


# IDX.


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_reads_back_as_written(tmp_path, suffix):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / f"file{suffix}"
    path.write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    np.testing.assert_array_equal(read_idx(path, 3), array)


GOOD = idx(np.zeros((2, 3, 4)))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "0 bytes: expected an IDX header of 16"),
        (GOOD[:10], "10 bytes: expected an IDX header of 16"),
        (b"\0\0\x0d\x03" + GOOD[4:], "magic number 0x00000d03: expected 0x00000803"),
        (idx(np.zeros(24)), "magic number 0x00000801: expected 0x00000803"),
        (GOOD[:-1], r"23 bytes of data: expected 24 for shape \(2, 3, 4\)"),
        (GOOD + b"\0", "25 bytes of data: expected 24"),
        (struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "0 bytes of data: expected 792281"),
    ],
)
def test_a_damaged_idx_file_is_refused_with_the_reason(tmp_path, content, says):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(StudyError, match=says):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "content", [b"not gzip at all", gzip.compress(GOOD)[:-9], gzip.compress(GOOD)[:20] + b"\0" * 40]
)
def test_a_damaged_gzip_file_is_refused(tmp_path, content):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(StudyError, match="cannot be read"):
        read_idx(path, 3)


def test_a_folder_of_idx_files_is_read_and_normalised(tmp_path):
    write_images(tmp_path / "small")
    found = load(tmp_path / "small")
    pixels = {part: read_idx(tmp_path / "small" / f"{part}-images-idx3-ubyte.gz", 3) for part in ("train", "t10k")}
    assert found.name == "small"
    assert_read(
        found, pixels["train"][:, None], [i % 5 for i in range(40)], pixels["t10k"][:, None], [i % 5 for i in range(12)]
    )


def test_one_channel_is_normalised_to_the_same_bits_as_by_one_scalar(tmp_path):
    write_images(tmp_path)
    pixels = read_idx(tmp_path / "train-images-idx3-ubyte.gz", 3)
    expected = torch.tensor(pixels).unsqueeze(1).float().sub_(float(pixels.mean())).div_(float(pixels.std()))
    assert torch.equal(load(tmp_path).train.images, expected)


def test_a_batch_is_the_rows_that_are_asked_for(tmp_path):
    write_images(tmp_path)
    train = load(tmp_path).train
    images, labels = Batches(train).__getitems__([3, 0, 3])
    assert torch.equal(images, train.images[[3, 0, 3]])
    assert torch.equal(labels, train.labels[[3, 0, 3]])


def test_fewer_examples_are_a_choice_by_the_seed_normalised_by_themselves(tmp_path):
    write_images(tmp_path)
    some, again, others = (load(tmp_path, examples=30, seed=seed).train for seed in (1, 1, 2))
    assert some.images.shape == (30, 1, 8, 8)
    assert abs(float(some.images.mean())) < 1e-5
    assert abs(float(some.images.std(correction=0)) - 1) < 1e-5
    assert torch.equal(some.images, again.images)
    assert some.labels.tolist() != others.labels.tolist()
    assert len(load(tmp_path, examples=41).train) == 40


def test_idx_files_that_do_not_fit_together_are_refused(tmp_path):
    write_images(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(39))))
    with pytest.raises(StudyError, match="40 images and 39 labels"):
        load(tmp_path)


def test_training_and_test_images_of_unequal_size_are_refused(tmp_path):
    write_images(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((12, 8, 4)))))
    with pytest.raises(StudyError, match=r"training images are \(1, 8, 8\), test images \(1, 8, 4\)"):
        load(tmp_path)


# CIFAR.


@pytest.mark.parametrize(
    ("name", "inner"),
    [
        ("CIFAR-10", ""),
        ("CIFAR-100", ""),
        ("CIFAR-10", "cifar-10-batches-bin"),
        ("CIFAR-100", "cifar-100-binary"),
    ],
)
def test_cifars_files_are_read_in_order_with_every_channel_normalised(tmp_path, name, inner):
    written = write_cifar(tmp_path / inner, name)
    files, last = CIFAR[name]
    found = load(tmp_path)
    assert found.name == name
    train, labels = (np.concatenate([written[file][of] for file in files]) for of in (0, 1))
    assert_read(found, train, labels, *written[last])
    torch.testing.assert_close(found.train.images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_a_record_is_red_green_and_blue_row_by_row(tmp_path):
    pixels = bytes(range(256)) * 12
    (tmp_path / "one.bin").write_bytes(b"\x07" + pixels)
    images, labels = read_cifar(tmp_path / "one.bin", "CIFAR-10")
    assert labels.tolist() == [7]
    for channel, row, column in ((0, 0, 5), (0, 1, 0), (1, 0, 0), (2, 31, 30)):
        assert images[0, channel, row, column] == pixels[1024 * channel + 32 * row + column]


def test_a_damaged_cifar_folder_is_refused_with_the_file_and_the_reason(tmp_path):
    write_cifar(tmp_path, "CIFAR-10")
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    for content, says in (
        (whole[:-1], r"data_batch_3.bin: 24583 bytes: expected one or more records of 3073 bytes"),
        (b"", "data_batch_3.bin: 0 bytes"),
        (
            whole[: 2 * 3073] + b"\x0a" + whole[2 * 3073 + 1 :],
            "data_batch_3.bin: record 2 has the label 10: expected 0",
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(StudyError, match=says):
            load(tmp_path)
    path.unlink()
    with pytest.raises(StudyError, match=r"data_batch_3.bin: cannot be read: No such file"):
        load(tmp_path)


@pytest.mark.parametrize(("column", "label", "end"), [(0, 20, 20), (1, 100, 100)])
def test_both_labels_of_cifar_100_are_checked(tmp_path, column, label, end):
    write_cifar(tmp_path, "CIFAR-100")
    content = bytearray((tmp_path / "test.bin").read_bytes())
    content[3 * 3074 + column] = label
    (tmp_path / "test.bin").write_bytes(content)
    with pytest.raises(StudyError, match=f"record 3 has the label {label}: expected 0 <= label < {end}"):
        load(tmp_path)


def test_a_folder_that_holds_no_or_two_data_sets_is_refused(tmp_path):
    with pytest.raises(StudyError, match="expected train-images-idx3-ubyte"):
        load(tmp_path)
    for name, inner in (("CIFAR-10", "cifar-10-batches-bin"), ("CIFAR-100", "cifar-100-binary")):
        write_cifar(tmp_path / inner, name, each=1)
    with pytest.raises(StudyError, match="both CIFAR-10 and CIFAR-100"):
        load(tmp_path)
    assert load(tmp_path / "cifar-100-binary").name == "CIFAR-100"
    write_images(tmp_path)  # files in the folder itself come before folders in it
    assert load(tmp_path).classes == 5
    with pytest.raises(StudyError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")


# One's own.

PIXELS = np.random.default_rng(1).integers(0, 256, (9, 3, 8, 12), np.uint8)
PIXELS[:, 2] = 5  # a channel that is the same everywhere
OWN = """
PIXELS = np.random.default_rng(1).integers(0, 256, (9, 3, 8, 12), np.uint8)
PIXELS[:, 2] = 5

def sets():
    items = [(image, %s) for row, image in enumerate(%s)]
    return items[:6], items[6:]
"""


@pytest.mark.parametrize(
    "images",
    [
        "PIXELS",
        "torch.tensor(PIXELS)",
        "torch.tensor(PIXELS).double()",
        "torch.tensor(PIXELS).bfloat16()",
        "PIXELS.astype(np.float16)",
        "PIXELS.transpose(0, 2, 3, 1)",
        "[Image.fromarray(image) for image in PIXELS.transpose(0, 2, 3, 1)]",
    ],
)
@pytest.mark.parametrize("label", ["row % 4", "np.uint8(row % 4)", "torch.tensor(row % 4)"])
def test_every_kind_of_colour_image_and_of_label_reads_the_same(own, images, label):
    labels = [row % 4 for row in range(9)]
    assert_read(load(own(OWN % (label, images))), PIXELS[:6], labels[:6], PIXELS[6:], labels[6:])


@pytest.mark.parametrize(
    "images",
    [
        "PIXELS[:, 0]",
        "PIXELS[:, 0, :, :, None]",
        "torch.tensor(PIXELS[:, 0])",
        "torch.tensor(PIXELS[:, :1])",
        "[Image.fromarray(image) for image in PIXELS[:, 0]]",
    ],
)
def test_every_kind_of_grey_image_reads_the_same(own, images):
    labels = [row % 4 for row in range(9)]
    assert_read(load(own(OWN % ("row % 4", images))), PIXELS[:6, :1], labels[:6], PIXELS[6:, :1], labels[6:])


def test_a_tensors_last_axis_is_never_its_channels(own):
    assert load(own(OWN % ("row", "torch.tensor(PIXELS[:, :, :, :3])"))).train.images.shape == (6, 3, 8, 3)


def test_what_a_data_set_holds_is_not_written_to(own):
    name = own("T = torch.arange(12.0).reshape(3, 1, 2, 2)\ndef sets():\n    return ([(t, 0) for t in T],) * 2")
    load(name)
    assert torch.equal(sys.modules[name.partition(":")[0]].T, torch.arange(12.0).reshape(3, 1, 2, 2))


IMAGE = "np.zeros((8, 8), np.uint8)"


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("7", r"expected two map-style data sets \(train, test\), got int"),
        ("[[], [], []]", "got list of list, list, list"),
        ("(iter([]), [])", "got tuple of list_iterator, list"),
        ("([], [])", "train: no examples"),
        (f"([({IMAGE}, 0)], [{IMAGE}])", r"test\[0\]: expected \(image, label\), got ndarray"),
        (f"([({IMAGE}, 0), ({IMAGE}, -1)], [])", r"train\[1\]: label -1: expected an integer >= 0"),
        (f"([({IMAGE}, 1 << 31)], [])", r"train\[0\]: label 2147483648: expected an integer >= 0"),
        (f"([({IMAGE}, 1.0)], [])", r"train\[0\]: label of type float: expected an integer >= 0"),
        (f"([({IMAGE}, torch.eye(3))], [])", r"train\[0\]: label of type Tensor: expected an integer >= 0"),
        (f"([({IMAGE}, 0), ({IMAGE}[1:], 0)], [])", r"train\[1\]: image uint8 \[1, 7, 8\]: expected uint8 \[1, 8, 8\]"),
        (f"([({IMAGE}, 0), ({IMAGE} / 2, 0)], [])", r"train\[1\]: image float32 .*: expected uint8"),
        (f"([({IMAGE}, 0)], [({IMAGE} / 2, 0)])", "training images are uint8, test images float32"),
        (f"([({IMAGE}, 0)], [({IMAGE}[1:], 0)])", r"training images are \(1, 8, 8\), test images \(1, 7, 8\)"),
        ("([(np.zeros((8, 8), int), 0)], [])", r"train\[0\]: image of dtype int64: expected uint8 or floating"),
        ("([(np.zeros((2, 3, 8, 8)), 0)], [])", r"train\[0\]: image of shape \[2, 3, 8, 8\]: expected"),
        ("([(np.zeros((0, 8)), 0)], [])", r"train\[0\]: image of shape \[1, 0, 8\]: expected"),
        ("([(torch.full((8, 8), torch.nan), 0)], [])", r"train\[0\]: the image holds nan in float32"),
        ("([(np.full((8, 8), 1e300), 0)], [])", r"train\[0\]: the image holds inf in float32"),
    ],
)
def test_data_sets_that_are_not_as_described_are_refused_with_the_place(own, returned, says):
    with pytest.raises(StudyError, match=says) as raised:
        load(own(f"def sets():\n    return {returned}"))
    assert "\n" not in str(raised.value)


def test_a_name_that_leads_to_no_callable_is_refused(own):
    name = own("sets = 3")
    for source, says in (
        (name, "expected a callable sets in the module, got int"),
        (name.replace("sets", "others"), "expected a callable others in the module, got NoneType"),
        ("no_such_module:sets", "No module named 'no_such_module'"),
        (own("import no_such_package"), "No module named 'no_such_package'"),
        ("own.py:", "expected module:callable"),
        (":sets", "expected module:callable"),
        (".own:sets", "expected module:callable"),
    ):
        with pytest.raises(StudyError, match=f"data = '{source}': {says}"):
            load(source)


def test_what_the_callable_raises_passes_through(own):
    with pytest.raises(ZeroDivisionError):
        load(own("def sets():\n    return 1 / 0"))


def test_a_folder_may_have_a_colon_in_its_name(tmp_path):
    write_images(tmp_path / "a:b")
    assert load(str(tmp_path / "a:b")).name == "a:b"
