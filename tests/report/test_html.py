"""The page builder: one place that escapes, and no way around it."""

from __future__ import annotations

import pytest

from physcli.report.html import Cell, Markup, element, escape, interval, outside, page, shares, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>", "&lt;script&gt;"),
        ("\"a\" & 'b'", "&quot;a&quot; &amp; &#x27;b&#x27;"),
        ("a\nb", "a\nb"),
        ("\x00\x1b\x85\ud800\uffff", "\ufffd" * 5),
        ("&amp;", "&amp;amp;"),
        (None, ""),
        (0, "0"),
    ],
)
def test_text_is_escaped_once(text, shown):
    assert escape(text) == shown
    assert escape(escape(text)) == shown


def test_children_and_attributes_are_escaped():
    drawn = element("p", "<b>", element("i", "&"), ["x", None, 3], title='"><script>', hidden=True, id=None, lang=False)
    assert drawn == '<p title="&quot;&gt;&lt;script&gt;" hidden>&lt;b&gt;<i>&amp;</i>x3</p>'
    assert isinstance(drawn, Markup)


def test_joined_markup_is_text_again():
    """Only `element` makes markup: what is put together by hand is escaped like anything from outside."""
    assert escape(element("b", "x") + "<script>") == "&lt;b&gt;x&lt;/b&gt;&lt;script&gt;"
    assert escape(element("b", "x").upper()) == "&lt;B&gt;X&lt;/B&gt;"


@pytest.mark.parametrize(
    ("name", "attributes"), [("p onclick=x", {}), ("p", {"onclick": "x"}), ("p", {"a b": "x"}), ("", {})]
)
def test_names_from_outside_are_refused(name, attributes):
    with pytest.raises(ValueError, match="is called"):
        element(name, **attributes)


def test_writing_direction_stays_inside():
    assert outside("\u202eabc") == '<bdi class="outside">\u202eabc</bdi>'


def test_intervals_stay_on_their_axis():
    drawn = interval(5, -200, 300, reach=10, tone="better")
    assert 'x1="0.0"' in drawn
    assert 'x2="180.0"' in drawn
    assert 'aria-label="+5, from -200 to +300"' in drawn
    assert "whisker" not in interval(1, None, None, reach=10)


def test_shares_fill_the_bar():
    drawn = shares([("won", 1), ("tied", 0), ("lost", 3)], tones=("better", "", "worse"))
    assert drawn.count("<rect") == 2
    assert 'width="45.0"' in drawn
    assert 'width="135.0"' in drawn
    assert 'aria-label="won 1, tied 0, lost 3"' in drawn


def test_tables_name_their_rows_and_columns():
    drawn = table(
        ["metric", "value"], [["<pc>", Cell("1.0", tone="better", detail="of 2")]], label="Scores", right=(1,)
    )
    assert '<th scope="row">&lt;pc&gt;</th>' in drawn
    assert '<td class="number better">1.0<small>of 2</small></td>' in drawn
    assert 'tabindex="0" role="region" aria-label="Scores"' in drawn


def test_a_page_is_whole():
    text = page("A & B", "sub", element("p", "x"), footer="end")
    assert text.startswith('<!doctype html>\n<html lang="en">')
    assert "<title>A &amp; B</title>" in text
    assert text.count("<script>") == 1
    assert "http://" not in text
    assert "https://" not in text
