"""docs/trouble.md itself: every line names the test that proves it, and no test is without one."""

import ast
import re
from pathlib import Path

from tests.end_to_end.trouble import GOES_ON, TABLE, rows


def _proving() -> set[str]:
    """The tests that show a line."""
    return {
        node.name
        for path in Path(__file__).parent.glob("test_trouble_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and "row" in [argument.arg for argument in node.args.args]
    }


def test_every_line_names_the_test_that_proves_it_and_every_such_test_has_its_line() -> None:
    named = [row.proof for row in rows()]
    assert len(named) == len(set(named))
    assert set(named) == _proving()


def test_no_line_of_a_table_is_overlooked() -> None:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    heads = [line for line in lines if line.startswith("| when ")]
    assert len(rows()) == len(lines) - len(heads)


def test_every_line_quotes_words_tells_an_exit_code_and_what_is_kept() -> None:
    for row in rows():
        assert row.quotes, row
        assert row.exit == GOES_ON or 0 <= int(row.exit) <= 130, row
        assert row.kept, row


def test_what_a_person_reads_is_at_most_two_sentences_and_no_line_is_endless() -> None:
    for row in rows():
        for quote in row.quotes:
            assert len(re.findall(r"[.!?]\s+[A-Z]", quote)) <= 1, quote
            assert len(quote) <= 330, quote
