"""Promise: the report's tables and pictures show the numbers that its CSV files have, in the words that they state."""

from __future__ import annotations

import math

import pytest
from matplotlib.colors import to_hex
from report_helpers import UNIFORM, guarded, made, study, uniforms

from fastprio.study.report import findings, pictures, sections, setting, speed
from fastprio.study.report.results import FIRST, Results
from fastprio.study.report.tables import NONE

THIRD = 1 / 3


def lines_of(text: str) -> list[str]:
    return text.split("\n")


def timed(method: str, budget: float, error: float, **seconds: float):
    """A run of one second, of which the rest is backward."""
    parts = dict.fromkeys(speed.PARTS, 0.0) | seconds
    parts["backward"] = 1.0 - sum(parts.values())
    return made("clean", 0.0, method, budget, 0, [50.0, error], seconds={**parts, "evaluation": 9.0})


def test_the_papers_table_has_the_median_the_seeds_ends_and_the_error():
    runs = [made("clean", 0.0, "uniform", 1.0, seed, UNIFORM) for seed in range(3)]  # 12 % at 750
    at = [[12.0, 12.0, 12.0, 10.0], [40.0, 12.0, 12.0, 11.0], [40.0, 40.0, 12.0, 12.0]]
    runs += [made("clean", 0.0, "SB", 0.5, seed, errors) for seed, errors in enumerate(at)]
    never = [made("clean", 0.0, "VR", 0.5, seed, [90.0] * 4) for seed in range(3)]
    text = sections.paper_table(Results(runs + never)).text
    first = lines_of(text[text.index("Target: 1.2 x") :])
    assert "| uniform | 1.00x (10.00) | 3 |" in first
    assert "| SB 50 % | 3.00x [2.00 to 6.00] (11.00) | 3 |" in first
    assert f"| VR 50 % | {NONE} (90.00) | 3 |" in first
    seldom = sections.paper_table(Results(runs + never[:2] + [made("clean", 0.0, "VR", 0.5, 2, at[0])])).text
    assert f"| VR 50 % | {NONE} [{NONE} to 6.00] (63.33) | 3 |" in lines_of(seldom)


def test_what_shorter_uniform_training_would_need_is_shown_with_its_sign():
    lines = [*uniforms(), *(made("clean", 0.0, "SB", 0.25, seed, [50.0, 9.0]) for seed in range(2))]
    assert "| SB 25 % | > 4.00x | 2 |" in lines_of(sections.curve_table(study(lines)).text)
    lines[-2:] = [made("clean", 0.0, "SB", 0.25, 0, [50.0, 14.0])]
    assert "| SB 25 % | 2.00x | 1 |" in lines_of(sections.curve_table(study(lines)).text)


def test_seconds_are_shown_with_what_they_went_to_and_what_choosing_takes_too_much_of():
    times = [timed("uniform", 1.0, 10.0, choosing=0.01), timed("SB", 0.25, 12.0, choosing=0.0101, scoring=0.25)]
    slow = made("clean", 0.0, "IES", 1.0, 0, [50.0, 9.0], seconds=dict.fromkeys(speed.PARTS, 1.0))
    paper, _, equal, where = sections.seconds(study(uniforms(), [*times, slow]))
    assert paper.title == "The paper's table in seconds"
    assert "| clean | uniform | 1.0 | 0.0 % | 1.0 % | 0.0 % | 0.0 % | 99.0 % | 1 |" in lines_of(where.text)
    assert "| clean | SB 25 % | 1.0 | 0.0 % | 1.0 % **!** | 25.0 % | 0.0 % | 74.0 % | 1 |" in lines_of(where.text)
    assert f"| clean | SB 25 % | 1.0 | 12.00 | 10.00 | +2.00 | {NONE} | 1 |" in lines_of(equal.text)
    assert f"| clean | IES | 5.0 | 9.00 | 10.00 (longest) | -1.00 | {NONE} | 1 |" in lines_of(equal.text)


def test_the_least_error_of_uniform_training_is_shown_beside_its_final_one():
    lines = uniforms() + [made("clean", 0.0, "random subset", 2 / 3, seed, [50.0, 9.0 - seed]) for seed in range(2)]
    text = sections.paper_table(Results(lines)).text
    assert "| clean | 10.00 | 8.50 | random subset 67 % | 2 |" in lines_of(text)


def test_uniforms_error_in_equal_seconds_is_the_seeds_mean_and_says_if_one_took_longer():
    lines = uniforms()
    for line in lines[3:]:  # of the second seed
        line["result"]["error"] += 4
    times = [made("clean", 0.0, "uniform", 1.0, seed, UNIFORM) for seed in range(2)]  # a second
    for seed, took in enumerate((1.0, 2.0)):
        seconds = {**dict.fromkeys(speed.PARTS, 0.0), "forward": took}
        times.append(made("clean", 0.0, "VR", 1.0, seed, [50.0, 9.0], seconds=seconds))
    text = sections.seconds(study(lines, times))[2].text
    ends = f"{-3 - 6.314 * 2:+.2f} to {-3 + 6.314 * 2:+.2f}"  # of -1 and -5
    assert f"| clean | VR | 1.5 | 9.00 | 12.00 (longest) | -3.00 | {ends} | 2 |" in lines_of(text)


def test_every_seed_is_shown_with_its_differences_and_their_intervals():
    lines = [*uniforms(), *(made("clean", 0.0, "SB", 0.5, seed, [50.0, 13.0 + 2 * seed]) for seed in range(2))]
    text = sections.error_tables(Results(lines)).text
    half = 6.314 * math.sqrt(2) / math.sqrt(2)  # Student's t of one degree of freedom
    ends = f"({4 - half:+.2f} to {4 + half:+.2f})"
    within = f"({0 - half:+.2f} to {0 + half:+.2f})"
    assert f"| SB 50 % | 13.00 | 15.00 | 14.00 | +4.00 {ends} | +0.00 {within} | +0.00 {within} |" in lines_of(text)
    head = "| method | seed 0 | seed 1 | mean | to uniform | to random subset | to uniform within its backprops |"
    assert head in lines_of(text)
    costs = sections.cost_table(Results([*lines, made("clean", 0.0, "VR", 0.5, 0, [50.0, 9.0], scored=750)])).text
    assert "| VR 50 % | 50 % | 75 % | 1 |" in lines_of(costs)


def test_the_law_the_guards_and_the_learning_rates_are_shown():
    lines = [
        *uniforms("labels", 0.5),
        *(made("labels", 0.5, "SB", THIRD, seed, [50.0, 40.0, 30.0, 15.0 + 2 * seed]) for seed in range(2)),
        guarded("labels", 0.5, 0, 12.0, {"all": 0.25, "unaltered": 0.0625}, auroc=0.99, precision=0.9, recall=None),
        *(made("labels", 0.5, "SB", THIRD, seed, [50.0, 40.0, 30.0, 30.0 - seed], 2.0) for seed in range(2)),
    ]
    for point, altered in zip(lines[8]["result"]["curve"], (83, 124), strict=True):
        point["altered"] = altered  # 41 of the second half's 166
    results, right = Results(lines), 1 - 0.5 * 3 / 4
    text = lines_of(findings.law(results).text)
    law = f"| labels 50 | SB 33 % | {right:.3f} | 2 | {100 * (1 - right**3):.0f} % | 62 % | 100 % | 25 % "
    assert law + f"| {right**3:.3f} | 0.25 | no | 84.00 | 90.00 | 1.60x | 2 |" in text
    guard = f"| labels 50 | guarded SB 33 % | 0 | clean | 2.00 | 0.990 | 0.900 | {NONE} | 25.0 % | 6.2 % |"
    assert guard in lines_of(findings.guards(results).text)
    rates = lines_of(findings.rates(results).text)
    assert "| labels 50 | SB 33 % | 16.00 | 15.00 | 17.00 | 2 |" in rates
    assert "| labels 50 | SB 33 %, learning rate x 2 | 29.50 | 29.00 | 30.00 | 2 |" in rates


def test_the_short_table_has_the_rows_that_are_asked_for_first_and_each_column_is_put_in_words():
    lines = [*uniforms("gauss", 0.25), made("gauss", 0.25, "random subset", THIRD, 0, [50.0, 16.0])]
    text = lines_of(sections.in_short(study(lines)).text)
    assert text[2:] == [
        "| method | gauss 25 | seeds |",
        "| --- | ---: | ---: |",
        "| uniform | 10.00 | 1 |",
        "| random subset 33 % | 16.00 | 1 |",
    ]
    words = setting.setting(study(lines)).text
    everything = [
        made("clean", 0.0, row.removesuffix(" 33 %"), THIRD if "33" in row else 1.0, 0, UNIFORM) for row in FIRST
    ]
    assert sum(line.startswith("| ") for line in sections.in_short(study(everything)).text.split("\n")) == 2 + 7
    assert "| gauss 25 | 25 % are Gaussian noise of the image's own mean and variance; the label is kept |" in words


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The panels of a picture instead of its file."""
    figures = []
    monkeypatch.setattr(pictures.Figure, "savefig", lambda figure, path: figures.append(figure))

    def draw(name, whole):
        pictures.PICTURES[name](whole, tmp_path / "x.png")
        return [panel for panel in figures[-1].axes if panel.get_visible()]

    return draw


def points(panel, colour=None):
    """What a panel's lines go through, of one colour."""
    return [
        [*zip(line.get_xdata(), line.get_ydata(), strict=True)]
        for line in panel.lines
        if colour is None or line.get_color() == colour
    ]


def test_learning_curves_go_through_the_means_of_the_seeds(drawn):
    lines = [*uniforms(), *uniforms("labels", 0.5, 1)]
    lines += [made("clean", 0.0, "SB", THIRD, seed, [40.0, 20.0 + 4 * seed]) for seed in range(2)]
    clean, labels = drawn("learning_curves", study(lines))
    (sb,) = points(clean, pictures.STYLE["SB"][0])
    assert sb == [(pytest.approx(0.167), 40.0), (pytest.approx(0.333), 22.0)]
    (uniform,) = points(labels, pictures.STYLE["uniform"][0])
    assert uniform == [(0.25, 50.0), (0.5, 30.0), (0.75, 11.0), (1.0, 10.0)]
    assert [panel.get_title() for panel in (clean, labels)] == ["clean", "labels 50"]
    (band,) = (c for c in clean.collections if to_hex(c.get_facecolor()[0]).upper() == pictures.STYLE["SB"][0])
    ends = band.get_paths()[0].vertices
    assert {20.0, 24.0} <= set(ends[:, 1][ends[:, 0] > 0.3].tolist())  # the least and the most at the end
    assert labels.get_ylim()[1] == pytest.approx(1.05 * 11)  # of the evaluations after the first two


def test_final_errors_are_a_dot_a_seed(drawn):
    lines = [*uniforms(), *(made("clean", 0.0, "SB", 0.5, seed, [40.0, 20.0 + 4 * seed]) for seed in range(2))]
    (panel,) = drawn("final_errors", study(lines))
    names = [label.get_text() for label in panel.get_yticklabels()]
    dots, bar = points(panel, pictures.STYLE["SB"][0])
    assert [(error, names[place]) for error, place in dots] == [(20.0, "SB 50 %"), (24.0, "SB 50 %")]
    assert bar == [(22.0, names.index("SB 50 %"))]
    (line,) = (line for line in panel.lines if line.get_linestyle() == ":")
    assert set(line.get_xdata()) == {10.0}


def test_the_altered_share_is_drawn_beside_the_laws_and_the_datas(drawn):
    lines = [made("gauss", 0.25, "SB", 0.5, seed, [9.0, 9.0, 9.0, 9.0]) for seed in range(2)]
    (panel,) = drawn("altered_share", study(lines))
    assert points(panel, "#333333") == [[(0, pytest.approx(1 - 0.75**2))]]
    assert points(panel, "#B0B0B0") == [[(0, 0.25)]]
    (measured,) = points(panel, pictures.STYLE["SB"][0])
    assert [share for _, share in measured] == [1.0, 1.0]  # in the made-up runs all of the second half is altered


def test_bars_of_seconds_are_as_long_as_what_they_stand_for(drawn):
    (panel,) = drawn("seconds", study(uniforms(), [timed("SB", 0.25, 12.0, choosing=0.125, scoring=0.25)]))
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([0.0, 0.125, 0.25, 0.0, 0.625])
    assert [bar.get_x() for bar in panel.patches] == pytest.approx([0.0, 0.0, 0.125, 0.375, 0.375])
    assert [text.get_text() for text in panel.texts] == ["12.5 %"]
