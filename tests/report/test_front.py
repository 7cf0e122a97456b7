"""What a memory budget buys, in a report's forms."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import pytest
from loop_programs import ETA, batches, epochs, parameters

import mixflow
from mixflow.planner.front import CHOSEN, PLAIN, STEP, Offer
from mixflow.report.html.front import OTHERS, front_chart, front_rows
from mixflow.report.report import Report
from mixflow.runtime.measure import total_bytes


def meta_loss(eta, theta, data):
    return epochs(eta, theta, data, count=6)


ARGS = ETA, parameters(64), batches(8)


@pytest.fixture(scope="module")
def compiled():
    return mixflow.compile(jax.value_and_grad(meta_loss))


@pytest.fixture(scope="module")
def report(compiled) -> Report:
    return compiled.report(*ARGS)


def test_no_plan_of_it_is_beaten_and_what_one_knows_is_named(report):
    named = {name: offer for offer in report.front for name in offer.names}
    assert named.keys() == {PLAIN, STEP, CHOSEN}
    assert named[PLAIN].time == 1.0
    assert named[CHOSEN].passes == report.plan
    sizes = [offer.total_bytes for offer in report.front]
    assert sizes == sorted(sizes, reverse=True)
    others = [offer for offer in report.front if not offer.names]
    assert others
    for one in others:
        assert not any(
            other.total_bytes <= one.total_bytes and other.time <= one.time
            for other in report.front
            if other is not one
        )


def test_a_budget_gets_what_the_front_says(compiled, report):
    offer = report.front[-1]
    budget = 1.2 * offer.total_bytes  # XLA has the last word, and the program is small
    fitted = mixflow.compile(compiled.fun, memory_budget=int(budget))
    assert total_bytes(fitted.lower(*ARGS).compile()) <= budget
    assert offer.total_bytes < 0.4 * report.front[0].total_bytes


def test_it_stands_in_every_form(report):
    for form in (str(report), report.to_markdown(), report.to_html()):
        assert "memory budget buys" in form
        assert f"{report.front[-1].time:.2f}×" in form
    found = json.loads(json.dumps(report.to_dict()))["front"]
    assert [one["plan"] for one in found] == [offer.passes for offer in report.front]
    assert [one["total_bytes"] for one in found] == [one.total_bytes for one in report.front]
    assert CHOSEN in {name for one in found for name in one["is"]}


def test_nothing_stands_there_where_nothing_was_planned(compiled, report):
    given = mixflow.compile(compiled.fun, passes=report.plan)
    assert given.front(*ARGS) == ()
    assert mixflow.compile(jax.grad(lambda x: x**2)).front(1.0) == ()
    bare = replace(report, front=())
    for form in (str(bare), bare.to_markdown(), bare.to_html()):
        assert "memory budget buys" not in form


def test_the_chart_has_a_point_for_each_plan_and_a_budget_is_never_too_small():
    offers = (Offer(3000.0, 1.0, "", (PLAIN,)), Offer(2049.0, 0.5, "cse"), Offer(1.0, 2.0, "dce"))
    values = front_chart(offers)["spec"]["data"]["values"]
    assert [value["kind"] for value in values] == [PLAIN, OTHERS, OTHERS]
    assert [row.budget for row in front_rows(offers)][1:] == [
        'memory_budget="3KiB"',
        'memory_budget="1KiB"',
    ]
    assert values[1]["amount"] == 2049 / 1024
