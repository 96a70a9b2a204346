"""Promise: a corruption draws the share it says, alters what it says and nothing else, and is its seed's."""

import numpy as np
import pytest
import torch
from helpers import P_FAIL, p_value

from fastprio.study.corruptions import KINDS, corrupt
from fastprio.study.data import Split
from fastprio.study.files import StudyError

N, CLASSES = 1000, 10


def clean():
    made = torch.Generator().manual_seed(1)
    scale = 1 + torch.rand(N, 1, 1, 1, generator=made)
    images = torch.randn(N, 1, 8, 8, generator=made) * scale + scale
    return Split(images, torch.arange(N) % CLASSES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [0.0, 0.25, 0.5, 0.333, 1.0])
def test_the_share_that_is_drawn_is_exact_and_the_rest_is_untouched(kind, level):
    before = clean()
    after = corrupt(before, CLASSES, kind, level, seed=3)
    assert after.drawn.sum() == round(level * N)
    same = torch.from_numpy(~after.drawn)
    assert torch.equal(after.split.images[same], before.images[same])
    assert torch.equal(after.split.labels[same], before.labels[same])
    assert not (after.altered & ~after.drawn).any()
    changed = (after.split.labels != before.labels) | (after.split.images != before.images).flatten(1).any(1)
    assert changed.tolist() == after.altered.tolist()
    assert after.kept.tolist() == list(range(N))
    assert torch.equal(before.images, clean().images)  # in place of nothing
    assert torch.equal(before.labels, clean().labels)


def test_the_same_seed_draws_the_same_examples_for_every_kind_and_another_seed_others():
    drawn = {kind: corrupt(clean(), CLASSES, kind, 0.5, seed=3).drawn.tolist() for kind in KINDS}
    assert all(mask == drawn["clean"] for mask in drawn.values())
    assert corrupt(clean(), CLASSES, "clean", 0.5, seed=4).drawn.tolist() != drawn["clean"]
    for kind in KINDS:
        once, again = (corrupt(clean(), CLASSES, kind, 0.5, seed=3).split for _ in range(2))
        assert torch.equal(once.images, again.images)
        assert torch.equal(once.labels, again.labels)


def test_random_labels_are_uniform_over_all_classes_the_right_one_among_them():
    counts, right = np.zeros(CLASSES), 0
    for seed in range(20):
        after = corrupt(clean(), CLASSES, "labels", 0.5, seed)
        labels = after.split.labels.numpy()[after.drawn]
        counts += np.bincount(labels, minlength=CLASSES)
        right += int(after.drawn.sum() - after.altered.sum())
    assert p_value(counts, np.full(CLASSES, counts.sum() / CLASSES)) > P_FAIL
    assert right / counts.sum() == pytest.approx(1 / CLASSES, abs=0.01)


def test_symmetric_labels_are_uniform_over_the_other_classes():
    before, steps = clean(), np.zeros(CLASSES)
    for seed in range(20):
        after = corrupt(before, CLASSES, "symmetric", 0.5, seed)
        assert (after.altered == after.drawn).all()
        steps += np.bincount((after.split.labels - before.labels).numpy()[after.drawn] % CLASSES, minlength=CLASSES)
    assert steps[0] == 0
    assert p_value(steps[1:], np.full(CLASSES - 1, steps.sum() / (CLASSES - 1))) > P_FAIL


def test_pairs_are_the_following_class():
    before = clean()
    after = corrupt(before, CLASSES, "pair", 0.4, seed=1)
    at = torch.from_numpy(after.drawn)
    assert torch.equal(after.split.labels[at], (before.labels[at] + 1) % CLASSES)


def test_pixels_are_shuffled_by_one_permutation_for_all():
    before = clean()
    after = corrupt(before, CLASSES, "shuffle", 0.5, seed=2)
    at = np.flatnonzero(after.drawn)
    old, new = before.images.flatten(1), after.split.images.flatten(1)
    order = [int((old[at[0]] == value).nonzero()[0]) for value in new[at[0]]]
    assert sorted(order) == list(range(64))
    assert order != list(range(64))
    assert torch.equal(new[at], old[at][:, order])


def test_gaussian_images_have_each_images_mean_and_variance():
    before = clean()
    images = before.images.repeat(1, 1, 8, 8)  # larger, so that the noise's own mean is near its expectation
    after = corrupt(Split(images, before.labels), CLASSES, "gauss", 0.5, seed=2)
    at = torch.from_numpy(after.drawn)
    old, new = images.flatten(1)[at], after.split.images.flatten(1)[at]
    torch.testing.assert_close(new.mean(1), old.mean(1), atol=0.15, rtol=0)
    torch.testing.assert_close(new.std(1), old.std(1), atol=0, rtol=0.06)
    assert abs(float(torch.corrcoef(torch.stack([new[0], new[1]]))[0, 1])) < 0.1  # noise of its own


def test_rare_classes_keep_their_share_and_nothing_is_altered():
    before = clean()
    after = corrupt(before, CLASSES, "rare", 0.98, seed=5)
    counts = np.bincount(after.split.labels.numpy(), minlength=CLASSES)
    assert counts[:7].tolist() == [100] * 7
    assert counts[7:].sum() == 6
    assert not after.altered.any()
    assert torch.equal(after.split.images, before.images[torch.from_numpy(after.kept)])
    assert torch.equal(after.split.labels, before.labels[torch.from_numpy(after.kept)])


@pytest.mark.parametrize("suffix", [".npy", ".txt"])
def test_labels_come_from_a_file(tmp_path, suffix):
    labels, path = (np.arange(N) * 3) % CLASSES, tmp_path / f"labels{suffix}"
    np.save(path, labels) if suffix == ".npy" else np.savetxt(path, labels, "%d")
    after = corrupt(clean(), CLASSES, f"file:{path}", 0.0, seed=0)
    assert after.split.labels.tolist() == labels.tolist()
    assert after.altered.tolist() == (labels != np.arange(N) % CLASSES).tolist()
    assert after.drawn.all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros(N - 1, np.int64), r"expected 1000 integers, got int64 of shape \[999\]"),
        (np.zeros(N), "expected 1000 integers, got float64"),
        (np.where(np.arange(N) == 7, 10, 0), "label 7 is 10: expected 0 <= label < 10"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, content, message):
    np.save(tmp_path / "labels.npy", content)
    with pytest.raises(StudyError, match=message):
        corrupt(clean(), CLASSES, f"file:{tmp_path / 'labels.npy'}", 0.0, seed=0)


def test_what_cannot_be_is_refused():
    for level in (-0.1, 1.1, float("nan")):
        with pytest.raises(StudyError, match="expected 0 <= level <= 1"):
            corrupt(clean(), CLASSES, "labels", level, seed=0)
    with pytest.raises(StudyError, match="corruption = 'lables': expected one of clean, labels"):
        corrupt(clean(), CLASSES, "lables", 0.5, seed=0)
    with pytest.raises(StudyError, match="cannot be read as labels"):
        corrupt(clean(), CLASSES, "file:/nowhere.npy", 0.5, seed=0)
