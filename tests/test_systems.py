"""The related systems: the smaller form of each example has its effect, by more than without the method.

That each policy does what it is defined to do is shown in test_policies*.py.
"""

import importlib.util
import json
import sys

import matplotlib.image
import pytest
import torch

from fastprio import cli, examples
from fastprio.study.data import Data, Split
from fastprio.study.files import StudyError
from fastprio.study.trial import Trial, compare, losses_of, mean, measures, picture, spread, table

TRIALS = (Trial(0, quick=True), Trial(1, quick=True))
FOUND, MISSED = "removed that are wrong, %", "wrong that are removed, %"


def load(name):
    spec = importlib.util.spec_from_file_location(name, examples.files()[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def effects(name, *ways):
    """(way, measure) -> mean over the trials, of the ways named; all, if none is."""
    module = load(name)
    results = compare(ways or module.WAYS, module.run, TRIALS)
    return {(way, what): mean(results, way, what) for way in results for what in measures({way: results[way]})}


def test_flow_forgets_less_and_learns():
    of = effects("flow")
    old, new = "old classes, %", "new classes, %"
    assert of["FLOW", old] > of["plain", old] + 20
    assert of["FLOW", new] > of["new head only", new] + 10


def test_flow_weighs_most_what_was_easy_before():
    module, trial = load("flow"), TRIALS[0]
    _, new, data = module.pretrained(trial)
    split = module.half(data.train, False)
    loader = trial.loader(split, module.FLOW())
    loader.score(new, losses_of, origin="reference")
    weights, losses = torch.empty(2, len(split))
    for batch in loader:
        at = loader.indices
        weights[at], losses[at] = loader.weights, losses_of(new, batch).detach()
        loader.skip()
    assert (weights[losses.argsort()].diff() <= 1e-6).all()
    assert weights.max() > 100 * weights.min()


def test_instance_early_stopping_saves_backprops_at_the_same_accuracy():
    of = effects("instance_early_stopping", "everything", "IES")
    assert of["IES", "backprops"] < 0.5 * of["everything", "backprops"]
    assert of["IES", "test accuracy, %"] > of["everything", "test accuracy, %"] - 1.5


def test_late_stopping_removes_wrong_labels():
    of = effects("late_stopping")
    assert of["Late Stopping", FOUND] > 90  # by chance 36
    assert of["Late Stopping", MISSED] > 85
    for way in ("everything", "everything, half as long"):
        assert of["Late Stopping", "test accuracy, %"] > of[way, "test accuracy, %"] + 4


def test_second_split_forgetting_finds_wrong_labels_and_spares_rare_ones():
    of = effects("second_split_forgetting")
    every, rare = "AUROC, wrong against all right", "AUROC, wrong against rare"
    assert of["forgotten early", every] > 0.9
    assert of["forgotten early", rare] > of["learned late", rare] + 0.02
    assert of["both", every] > 0.97


def test_multiplicative_reweighting_takes_the_weight_of_wrong_labels_away():
    of = effects("multiplicative_reweighting")
    share, accuracy = "weight of wrong labels, %", "test accuracy, %"
    assert of["reweighted", share] < 3 < 30 < of["equal weights", share]
    assert of["reweighted", accuracy] > of["equal weights", accuracy] + 8
    assert of["reweighted", accuracy] > of["equal weights, a third as long", accuracy] + 2


def test_on_the_fly_denoising_removes_wrong_labels():
    of = effects("on_the_fly_denoising", "everything", "ODD")
    assert of["ODD", FOUND] > 90  # by chance 36
    assert of["ODD", MISSED] > 70
    assert of["ODD", "test accuracy, %"] > of["everything", "test accuracy, %"] + 4


def test_task_robust_training_serves_the_worst_task():
    of = effects("task_robust", "average", "GroupDRO")
    assert of["GroupDRO", "worst task, %"] > of["average", "worst task, %"] + 4


def test_class_incremental_replay_keeps_the_old_classes():
    of = effects("class_incremental")
    old, every = "old classes, %", "all classes, %"
    assert of["nothing", old] < 10
    assert of["exemplars", old] > 80
    assert of["inverted, consistent", old] > of["inverted", old] + 3
    assert min(of[way, every] for way in ("exemplars", "inverted, consistent", "the same, weights alike")) > 70
    assert of["nothing", every] < 50
    assert of["the same, weights alike", "new classes, %"] != of["inverted, consistent", "new classes, %"]


def test_penalizing_change_removes_the_bias_and_keeps_the_rest():
    of = effects("penalizing_change")
    biased, plain = "others with the corner, %", "no corner, %"
    assert of["biased", biased] < 50
    for way in ("stopped, l2", "stopped, l1"):
        assert of[way, biased] > 70
        assert of[way, plain] > of["tuned, stopped", plain] + 0.5
    assert of["tuned", "steps"] == 100
    assert of["tuned, stopped", "steps"] < 50


def stub(way, trial):
    return {"a, %": trial.seed + (way == "with")} | ({"b": 2.0} if way == "with" else {})


def test_results_are_those_of_every_way_and_seed(capsys):
    results = compare(("without", "with"), stub, [Trial(3), Trial(5)])
    assert results == {"without": [{"a, %": 3}, {"a, %": 5}], "with": [{"a, %": 4, "b": 2.0}, {"a, %": 6, "b": 2.0}]}
    assert measures(results) == ["a, %", "b"]
    assert (mean(results, "without", "a, %"), spread(results, "with", "a, %")) == (4, "5 (4 to 6)")
    assert spread(results, "without", "b") == ""
    assert spread({"way": [{"backprops": 80562.0}]}, "way", "backprops") == "80,562"
    assert capsys.readouterr().err.splitlines()[-1] == "seed 5, with: a, %: 6; b: 2"
    assert [list(column.cells) for column in table(results).columns] == [
        ["without", "with"],
        ["4 (3 to 5)", "5 (4 to 6)"],
        ["", "2 (2 to 2)"],
    ]
    panels = picture("title", results).axes
    assert [axes.get_title() for axes in panels] == ["a, %", "b"]
    dots = [list(line.get_xdata()) for line in panels[0].lines]
    assert dots == [[3, 5], [4], [4, 6], [5]]


@pytest.mark.parametrize("held_out", [False, True])
def test_a_trial_is_a_function_of_its_seed_and_holds_its_test_images_out(held_out):
    trial = Trial(1, quick=True, held_out=held_out)
    data = trial.data(500)
    again, other = trial.data(500), Trial(2, quick=True, held_out=held_out).data(500)
    assert len(data.train) == 500
    assert (data.train.images == again.train.images).all()
    assert not (data.train.labels == other.train.labels).all()
    test = {image.numpy().tobytes() for image in data.test.images}
    whole = {image.numpy().tobytes() for image in Trial(0, quick=True).data(10_000).train.images}
    assert len(test & whole) == (len(data.test) if held_out else 0)
    assert not test & {image.numpy().tobytes() for image in data.train.images}


def test_the_command_lists_and_runs_them(tmp_path, capsys):
    assert cli.main(["examples"]) == 0
    listed = capsys.readouterr().out
    assert len(examples.files()) == 9
    for name, path in examples.files().items():
        assert name in listed
        assert examples.about(path) in load(name).__doc__
    out = tmp_path / "new" / "folder"
    assert cli.main(["examples", "flow", "--quick", "--seeds", "1", "--held-out", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    record = json.loads((out / "flow.json").read_text())
    assert record["command"] == f"fastprio examples flow --quick --seeds 1 --held-out --out {out}"
    assert (record["seeds"], list(record["results"])) == ([0], list(load("flow").WAYS))
    assert record["data"] == "digits"
    assert all(way in shown.out for way in record["results"])
    assert matplotlib.image.imread(out / "flow.png").ndim == 3


@pytest.mark.parametrize(("classes", "height", "width"), [(9, 8, 8), (10, 8, 12), (10, 10, 10), (100, 8, 8)])
def test_data_that_the_examples_are_not_for_are_refused(classes, height, width, monkeypatch):
    split = Split(torch.zeros(2, 3, height, width), torch.tensor([0, classes - 1]))
    monkeypatch.setattr("fastprio.study.trial.whole", lambda source: Data(source, split, split, classes))
    with pytest.raises(StudyError, match=f"mine: {classes} classes of {height} x {width} pixels"):
        Trial(0, source="mine").data(2)


def test_the_command_takes_data_of_ones_own(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "squares_of_mine.py").write_text(
        "import torch\n"
        "def both():\n"
        "    images = torch.rand(60, 3, 12, 12, generator=torch.Generator().manual_seed(1))\n"
        "    rows = [(image, k % 10) for k, image in enumerate(images)]\n"
        "    return rows, rows\n"
    )
    arguments = ["examples", "multiplicative_reweighting", "--seeds", "1", "--data", "squares_of_mine:both"]
    assert cli.main(arguments) == 0
    assert "squares_of_mine:both, 1 seeds" in capsys.readouterr().out.replace("\n", " ")


def test_a_model_fits_the_data():
    split = Split(torch.zeros(2, 3, 12, 12), torch.tensor([0, 9]))
    assert Trial(0).model(Data("mine", split, split, 10))(split.images).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "nothing: expected one of class_incremental, flow, "),
        (["flow", "--seeds", "0"], "--seeds 0 --first-seed 0: expected one at least"),
        (["flow", "--first-seed", "-1"], "--first-seed -1: expected one at least, and 0 or above"),
        (["flow", "--quick", "--data", "x"], "--quick --data x: the smaller form is on digits"),
        (["flow", "--data", "/nowhere"], "/nowhere: no such folder"),
        (["flow", "--quick", "--out", "FILE"], "Not a directory"),
    ],
)
def test_misuse_is_said_in_one_line(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    arguments = [str(tmp_path / "file" / "below") if word == "FILE" else word for word in arguments]
    assert cli.main(["examples", *arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
