"""What a diff of two snapshots finds, and what it takes for the same."""

from __future__ import annotations

import json

import synthetic as made

from mixflow.report.diff.differences import Figure, LineChange


def test_nothing_differs_from_itself():
    found = made.entry_diff(made.snapshot(), made.snapshot())
    assert found.status == "same"
    assert found.same_regions == 2


def test_code_that_has_only_moved_is_the_same():
    found = made.entry_diff(made.snapshot(), made.moved(made.snapshot(), 5))
    assert found.status == "same"


def test_times_are_ignored():
    timed = made.changed(lambda entry: entry.update(measured={"before": {"run_s": 1.0}}))
    assert made.entry_diff(made.snapshot(), timed).status == "same"


def test_figures_have_their_change():
    def grow(entry):
        entry["after"]["temp_bytes"] = 1250
        entry["after"]["flops"] = None

    found = made.entry_diff(made.snapshot(), made.changed(grow))
    assert found.status == "changed"
    figures = {one.name: one for one in found.figures}
    assert figures["temp_bytes"] == Figure("temp_bytes", 1000, 1250)
    assert figures["temp_bytes"].percent == 25
    assert figures["flops"].percent is None
    assert figures["plain_temp_bytes"].percent == 0


def test_a_figure_that_was_zero_has_no_percentage():
    assert Figure("eqns", 0, 5).percent is None
    assert Figure("eqns", 0, 0).percent == 0


def test_a_lost_rewrite_and_a_new_decline_are_named():
    why = "custom rule of clipped at model.py:3"

    def lose(entry):
        del entry["rewrites"][0]
        entry["declined"].append(made.decline("forward-over-reverse", 10, why))

    found = made.entry_diff(made.snapshot(), made.changed(lose))
    assert found.rewrites.lost == (made.rewrite("forward-over-reverse", 10),)
    assert not found.rewrites.gained
    assert found.declined.gained == (made.decline("forward-over-reverse", 10, why),)


def test_a_rewrite_of_another_gradient_is_no_substitute():
    def other(entry):
        entry["rewrites"][0] = {**made.rewrite("forward-over-reverse", 10), "at": "other.py:10"}

    found = made.entry_diff(made.snapshot(), made.changed(other))
    assert [one["at"] for one in found.rewrites.lost] == ["model.py:10"]
    assert [one["at"] for one in found.rewrites.gained] == ["other.py:10"]


def test_one_of_two_equal_rewrites_is_lost():
    twice = made.changed(lambda entry: entry["rewrites"].append(entry["rewrites"][0]))
    found = made.entry_diff(twice, made.snapshot())
    assert len(found.rewrites.lost) == 1


def test_a_reworded_rewrite_is_neither_lost_nor_gained():
    def reword(entry):
        entry["rewrites"][1]["what"] = "16 steps as 4 x 4"

    found = made.entry_diff(made.snapshot(), made.changed(reword))
    assert not found.rewrites.lost
    assert not found.rewrites.gained
    ((old, new),) = found.rewrites.reworded
    assert (old["what"], new["what"]) == ("done", "16 steps as 4 x 4")


def test_a_changed_region_has_its_line_and_its_operations_and_the_others_are_the_same():
    def change(entry):
        inside = made.region("main/scan[0]", 12, "changed", mul=2, sin=4)
        entry["after"]["regions"][1] = inside
        entry["after"]["fingerprint"] = "f1"

    found = made.entry_diff(made.snapshot(), made.changed(change))
    (region,) = found.regions
    assert region.status == "changed"
    assert (region.old_at, region.new_at) == ("model.py:12", "model.py:12")
    assert region.operations == {"mul": -1, "sin": 4}
    assert found.same_regions == 1


def test_a_region_that_was_added_leaves_its_twin_alone():
    def add(entry):
        entry["after"]["regions"].insert(1, made.region("main/jit[0]", 8, "inside", mul=3))

    found = made.entry_diff(made.snapshot(), made.changed(add))
    assert [(one.status, one.path) for one in found.regions] == [("added", "main/jit[0]")]
    assert found.same_regions == 2


def regions_of(*regions):
    def change(entry):
        entry["after"]["regions"] = [made.region("main", 1, "around", scan=1), *regions]
        entry["after"]["fingerprint"] = str(regions)

    return made.changed(change)


def region_changes(old, new):
    found = made.entry_diff(regions_of(*old), regions_of(*new)).regions
    return [(one.status, one.path, one.old_at, one.new_at) for one in found]


def test_regions_that_stand_at_one_line_by_chance_are_not_paired():
    """The loop at line 12 is gone; another has moved up to its line, and changed."""
    gone = made.region("main/scan[0]", 12, "a", sin=6, mul=1)
    old = made.region("main/scan[1]", 20, "b", dot_general=4, tanh=3, mul=1)
    new = made.region("main/scan[0]", 12, "c", dot_general=4, tanh=4, mul=1)
    assert region_changes([gone, old], [new]) == [
        ("changed", "main/scan[0]", "model.py:20", "model.py:12"),
        ("removed", "main/scan[0]", "model.py:12", None),
    ]


def test_regions_that_share_a_line_and_nothing_else_are_not_paired():
    old = made.region("main/scan[0]", 12, "a", sin=6)
    new = made.region("main/cond[0]/scan[0]", 12, "b", dot_general=4)
    assert [status for status, *_ in region_changes([old], [new])] == ["added", "removed"]


def test_regions_of_different_operations_are_not_paired():
    old, new = (made.region(f"main/{what}[0]", 12, what, sin=6) for what in ("scan", "while"))
    assert [status for status, *_ in region_changes([old], [new])] == ["removed", "added"]


def test_a_changed_region_is_found_behind_one_that_was_put_before_it():
    """Its path and its line are now those of the new loop."""
    old = made.region("main/scan[0]", 12, "a", dot_general=4, tanh=3)
    first = made.region("main/scan[0]", 12, "b", sin=6)
    second = made.region("main/scan[1]", 20, "c", dot_general=4, tanh=4)
    assert region_changes([old], [first, second]) == [
        ("added", "main/scan[0]", None, "model.py:12"),
        ("changed", "main/scan[1]", "model.py:12", "model.py:20"),
    ]


def test_functions_that_have_changed_places_are_the_same():
    """Each now stands at the line and the path of the other."""
    one, other = made.region("main/scan[0]", 12, "a", sin=6), ("main/scan[1]", 20, "b")
    new = [made.region("main/scan[0]", 12, "b", mul=3), made.region("main/scan[1]", 20, "a", sin=6)]
    assert region_changes([one, made.region(*other, mul=3)], new) == []


def test_a_function_that_has_moved_and_changed_is_one_change():
    """Its body shares most operations with what it was; twins of other bodies stand between."""
    old = [
        made.region(f"main/scan[{n}]", 10 + n, f"o{n}", **{kind: 4, "mul": 2})
        for n, kind in enumerate(("sin", "dot_general", "tanh"))
    ]
    new = [
        made.region(f"main/scan[{n}]", 10 + n, f"n{n}", **{kind: 4, "mul": 3})
        for n, kind in enumerate(("dot_general", "tanh", "sin"))
    ]
    assert region_changes(old, new) == [
        ("changed", "main/scan[0]", "model.py:11", "model.py:10"),
        ("changed", "main/scan[1]", "model.py:12", "model.py:11"),
        ("changed", "main/scan[2]", "model.py:10", "model.py:12"),
    ]


def test_a_region_that_was_rewritten_where_it_stands_is_one_change():
    old = made.region("main/scan[0]", 12, "a", sin=6)
    new = made.region("main/scan[0]", 14, "b", dot_general=4)
    assert region_changes([old], [new]) == [
        ("changed", "main/scan[0]", "model.py:12", "model.py:14")
    ]


def test_operations_are_compared_by_line_though_lines_move():
    def change(entry):
        entry["after"]["operations"]["by_line"] = {
            "model.py:12": 3,
            "model.py:13": 7,
            "model.py:14": 1,
        }
        entry["after"]["eqns"] = 47

    found = made.entry_diff(made.snapshot(), made.changed(change))
    assert found.lines == (LineChange(None, "model.py:13", 0, 7),)


def by_line(**counts):
    def change(entry):
        lines = {f"model.py:{line[1:]}": count for line, count in counts.items()}
        entry["after"]["operations"]["by_line"] = lines

    return made.changed(change)


def test_a_line_that_moved_and_changed_is_one_line():
    old, new = by_line(l10=3, l12=1, l14=5), by_line(l11=3, l13=2, l15=6)
    new["entries"]["meta_loss"]["after"]["eqns"] = 47
    assert made.entry_diff(old, new).lines == (
        LineChange("model.py:12", "model.py:13", 1, 2),
        LineChange("model.py:14", "model.py:15", 5, 6),
    )


def test_lines_that_have_not_moved_together_are_paired_by_place():
    old, new = by_line(l10=3, l12=1, l14=5), by_line(l12=2, l14=6)
    new["entries"]["meta_loss"]["after"]["eqns"] = 47
    assert made.entry_diff(old, new).lines == (
        LineChange("model.py:10", None, 3, 0),
        LineChange("model.py:12", "model.py:12", 1, 2),
        LineChange("model.py:14", "model.py:14", 5, 6),
    )


def test_who_is_alive_at_the_peak():
    def change(entry):
        entry["after"]["peak"]["alive"].append(made.buffer(64, 11))

    found = made.entry_diff(made.snapshot(), made.changed(change))
    assert found.alive.gained == (made.buffer(64, 11),)
    assert not found.alive.lost


def test_entries_come_and_go():
    old, new = made.snapshot(a=made.entry(), b=made.entry()), made.snapshot(b=made.entry())
    assert [one.status for one in made.diff_of(old, new).entries] == ["removed", "same"]
    assert [one.status for one in made.diff_of(new, old).entries] == ["added", "same"]


def test_other_versions_are_a_warning():
    newer = {**made.snapshot(), "jax": "0.12.0", "backend": "gpu"}
    warnings = made.diff_of(made.snapshot(), newer).warnings
    assert ["JAX" in warnings[0], "backend" in warnings[1], len(warnings)] == [True, True, 2]
    assert not made.diff_of(made.snapshot(), made.snapshot()).warnings


def test_the_json_form_can_be_written_and_has_percentages():
    grown = made.changed(lambda entry: entry["after"].update(temp_bytes=1500))
    found = json.loads(json.dumps(made.diff_of(made.snapshot(), grown).to_dict()))
    assert found["entries"][0]["figures"][0] == {
        "name": "temp_bytes",
        "old": 1000,
        "new": 1500,
        "percent": 50.0,
    }
