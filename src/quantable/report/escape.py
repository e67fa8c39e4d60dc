"""Strings of records and tables as text: nothing in them is markup, a formula or a control code."""

import re
import unicodedata
from typing import TypeVar

from quantable.report.schema import Report

Nested = TypeVar("Nested")

# Cc control, Cf invisible or turning the direction of text, Cs half a character, Zl and Zp breaks.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# How a cell begins that a spreadsheet would compute: these signs, and their full-width forms.
FORMULA = r"=+\-@\t\r＝＋－＠"

# Number signs at the end of a heading would close it.
MARKDOWN = re.compile(r"[\\`*<\[|~$]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])|#(?=#*$)")
# Before what begins a heading, quote, list, target or comment.
MARKDOWN_START = re.compile(r"^(?=[#>+\-=(:%])|^(\d+)(?=[.)](?:\s|$))")

LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\texttt{\char34}",
    "`": r"\textasciigrave{}",
    "\u00a0": "~",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
    "•": r"\textbullet{}",
    "§": r"\S{}",
}
LATEX_MATH = {
    **{"−": "-", "±": r"\pm", "×": r"\times", "·": r"\cdot", "÷": r"\div", "≤": r"\leq"},
    **{"≥": r"\geq", "≠": r"\neq", "≈": r"\approx", "∞": r"\infty", "→": r"\rightarrow"},
    **{"←": r"\leftarrow", "∑": r"\sum", "√": r"\surd", "∂": r"\partial", "∈": r"\in"},
    **{"°": r"{}^{\circ}", "²": "{}^{2}", "³": "{}^{3}", "µ": r"\mu", "¬": r"\neg"},
    **{"⌊": r"\lfloor", "⌋": r"\rfloor", "⌈": r"\lceil", "⌉": r"\rceil"},
}
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
for _name in GREEK.split():  # "lamda" in Unicode's spelling
    _kind = "CAPITAL" if _name[0].isupper() else "SMALL"
    _word = _name.upper().replace("LAMBDA", "LAMDA")
    LATEX_MATH[unicodedata.lookup(f"GREEK {_kind} LETTER {_word}")] = f"\\{_name}"
ACCENTS = {
    **{"\u0300": r"\`", "\u0301": r"\'", "\u0302": r"\^", "\u0303": r"\~", "\u0308": r"\""},
    **{"\u030a": r"\r", "\u030c": r"\v", "\u0327": r"\c", "\u0304": r"\=", "\u0306": r"\u"},
}


def visible(text: str) -> str:
    r"""Return ``text`` on one line, hidden characters as the escapes of a Python string.

    >>> print(visible("red \x1b[31m, reversed \u202e,\n next line"))
    red \x1b[31m, reversed \u202e,  next line
    """
    return "".join(map(_shown, text))


def _shown(char: str) -> str:
    if char in "\n\r\t":
        return " "
    if unicodedata.category(char) in HIDDEN:
        return char.encode("unicode_escape").decode("ascii")
    return char


def slug(words: str) -> str:
    """Words as a part of an address, or as the name of a file.

    >>> slug("ad 2/3+more")
    'ad-2-3+more'
    """
    return re.sub(r"[^\w.+-]+", "-", words)


def shown(report: Report) -> Report:
    """Return ``report`` with all its strings ``visible``."""
    return Report.model_validate(each_string(report.model_dump()))


def each_string(content: Nested) -> Nested:
    """Return nested lists and mappings with every string ``visible``."""
    if isinstance(content, str):
        return visible(content)  # type: ignore[return-value]
    if isinstance(content, dict):
        return {each_string(k): each_string(v) for k, v in content.items()}  # type: ignore[return-value]
    if isinstance(content, list | tuple):
        return [each_string(part) for part in content]  # type: ignore[return-value]
    return content


def markdown_text(text: str) -> str:
    r"""Escape what Markdown (CommonMark, GitHub's and MyST's additions) would read as markup.

    >>> print(markdown_text("<b> [x](y) a_b _c_ published=<file>"))
    \<b> \[x](y) a_b \_c\_ published=\<file>
    """
    escaped = MARKDOWN.sub(lambda found: f"\\{found[0]}", text.strip())
    return MARKDOWN_START.sub(r"\1\\", escaped)


def cell_text(value: object, separator: str = ",") -> object:
    """Return a cell of a CSV file: a string that a spreadsheet takes for text, or a number.

    A string is none either where the file is read with another separator than it has. Where
    ``separator`` is a semicolon, numbers have a decimal comma.

    >>> cell_text("=1+1"), cell_text(-1.5), cell_text("16 bit"), cell_text("a;=1+1")
    ("'=1+1", -1.5, '16 bit', "a;'=1+1")
    >>> cell_text(-1.5, ";"), cell_text(2, ";")
    ('-1,5', 2)
    """
    if isinstance(value, float) and separator == ";":
        return repr(value).replace(".", ",")
    if not isinstance(value, str):
        return value
    other = "," if separator == ";" else ";"
    return re.sub(rf"(^|{other})(?=[\s\"']*[{FORMULA}])", r"\1'", value)


def latex_text(text: str) -> str:
    r"""Escape what TeX would obey; a character its standard fonts lack appears as its number.

    >>> print(latex_text(r"50% of \input{x} ± 3, Müller, --, 快"))
    50\% of \textbackslash{}input\{x\} \(\pm\) 3, M\"{u}ller, -{}-, \texttt{U+5FEB}
    """
    escaped = "".join(map(_latex_character, text))
    # Two hyphens would become a dash, two quotes one sign; a row must not begin like the star
    # or the length of the line break before it.
    escaped = re.sub("([-'])(?=\\1)", r"\1{}", escaped)
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def _latex_character(char: str) -> str:
    if char in LATEX:
        return LATEX[char]
    if char in LATEX_MATH:
        return rf"\({LATEX_MATH[char]}\)"
    if char.isascii() and char.isprintable():
        return char
    apart = unicodedata.normalize("NFD", char)
    letter, mark = apart[0], apart[1:]
    if letter.isascii() and letter.isalpha() and mark in ACCENTS:
        return f"{ACCENTS[mark]}{{{letter}}}"
    return rf"\texttt{{U+{ord(char):04X}}}"
