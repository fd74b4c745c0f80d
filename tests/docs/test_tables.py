"""Tables of figures in README and docs are those of `benchmarks/results`."""

import pytest
import tables

PAGES = list(tables.pages())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert tables.up_to_date(text) == text, "run python benchmarks/plot.py --docs"
    assert text.count("<!-- table:") == text.count("<!-- end -->")


def test_every_table_stands_in_a_page():
    found = {match[2] for page in PAGES for match in tables.MARKED.finditer(page.read_text())}
    assert found == set(tables.TABLES)


def test_a_changed_figure_is_noticed():
    page = tables.ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    assert tables.up_to_date(text.replace(" ms |", " s |", 1)) == text
