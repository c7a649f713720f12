"""The bracket notation of Stripe's forms."""

from __future__ import annotations

import pytest

from example_app.sandbox.errors import ApiError
from example_app.sandbox.forms import as_list, as_map, decode


def test_brackets_become_a_tree():
    tree = decode([("mode", "payment"), ("line_items[0][price_data][unit_amount]", "1800"), ("metadata[a]", "b")])
    assert tree == {
        "mode": "payment",
        "line_items": {"0": {"price_data": {"unit_amount": "1800"}}},
        "metadata": {"a": "b"},
    }


def test_a_list_is_in_the_order_of_its_indexes_whatever_was_sent_first():
    tree = decode([("items[10]", "c"), ("items[2]", "b"), ("items[0]", "a")])
    assert as_list(tree["items"], "items") == ["a", "b", "c"]


def test_empty_brackets_at_the_end_append():
    assert as_list(decode([("expand[]", "a"), ("expand[]", "b")])["expand"], "expand") == ["a", "b"]


@pytest.mark.parametrize(
    "name",
    ["", "[a]", "a[", "a]", "a[b", "a[b]c", "a[[b]]", "a[][b]", "a" + "[b]" * 8],
)
def test_a_malformed_name_is_refused(name):
    with pytest.raises(ApiError) as caught:
        decode([(name, "x")])
    assert caught.value.status == 400


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a[b]"), ("a[b]", "a"), ("a[b]", "a[b][c]"), ("a[b]", "a[b]")])
def test_a_name_given_in_two_ways_is_refused(names):
    with pytest.raises(ApiError):
        decode([(name, "x") for name in names])


@pytest.mark.parametrize("index", ["first", "-1", "1.0", "", "²", "9" * 5000])
def test_what_has_other_keys_than_indexes_is_no_list(index):
    with pytest.raises(ApiError):
        as_list({index: "x"}, "items")


def test_an_unknown_name_is_given_in_full():
    with pytest.raises(ApiError) as caught:
        as_map({"oops": "1"}, "line_items[0]", frozenset({"quantity"}))
    assert (caught.value.param, caught.value.code) == ("line_items[0][oops]", "parameter_unknown")
