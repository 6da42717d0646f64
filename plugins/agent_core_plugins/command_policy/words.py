"""One simple command, read from a shell text without a shell.

Only what is known to mean the same to bash is taken: what is not on these lists is left to bash.
"""

import re

TEXT_LIMIT = 64 * 2**10  # characters of a text that is looked at

KEYWORDS = frozenset(
    {"if", "then", "else", "elif", "fi", "case", "esac", "for", "select", "while", "until"}
    | {"do", "done", "in", "function", "time", "coproc"}
)
_BARE = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")
_QUOTED = re.compile(r"'([^'\x00-\x08\x0b-\x1f\x7f-\x9f]*)'")
_DOUBLED = re.compile(r'"([^"$`\\!\x00-\x08\x0b-\x1f\x7f-\x9f]*)"')
_BLANK = re.compile(r"[ \t]+")


def simple(text: str) -> tuple[str, ...] | None:
    """The argument vector of a text that is one simple command; None: it takes a shell.

    No expansion, redirection, chaining, comment, escape, assignment or keyword; line breaks and
    characters beyond ASCII only inside of quotes.
    """
    if len(text) > TEXT_LIMIT:
        return None
    words: list[str] = []
    text, at = text.strip(" \t\n"), 0
    while at < len(text):
        word = ""
        start = at
        while at < len(text) and not (blank := _BLANK.match(text, at)):
            if match := _BARE.match(text, at):
                word += match[0]
            elif match := _QUOTED.match(text, at) or _DOUBLED.match(text, at):
                word += match[1]
            else:
                return None
            at = match.end()
        if not words and not _names_a_program(text[start:at], word):
            return None
        words.append(word)
        at = blank.end() if at < len(text) and blank else at
    return tuple(words) or None


def _names_a_program(written: str, word: str) -> bool:
    """Bash would look for a program of that name: no assignment, keyword or job (also quoted)."""
    return bool(word) and "=" not in written and word[0] != "%" and word not in KEYWORDS
