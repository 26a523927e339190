"""The text of a page that is meant to be read, as Markdown so that it is cut at its headings."""

from __future__ import annotations

from selectolax.lexbor import LexborHTMLParser, LexborNode

#: Never text, and what frames it.
_NEVER = ["script", "style", "noscript", "template", "svg", "iframe", "object", "canvas", "head"]
_FRAME = ["nav", "header", "footer", "aside", "form", "button", "select", "dialog", "[role=navigation]", "[hidden]"]
_BLOCKS = frozenset({
    "address", "article", "blockquote", "body", "dd", "details", "div", "dl", "dt", "fieldset", "figcaption", "figure",
    "hr", "main", "ol", "p", "section", "summary", "table", "tbody", "tfoot", "thead", "ul",
})  # fmt: skip
#: How deep tags may be nested; what is deeper is taken as plain text.
_DEPTH = 200


def title_and_text(page: str) -> tuple[str, str]:
    """The title, empty where there is none, and the text: of ``main`` or the only ``article`` where there is one."""
    tree = LexborHTMLParser(page)
    title = tree.css_first("title")
    name = " ".join(title.text().split()) if title is not None else ""
    tree.strip_tags(_NEVER)
    root = tree.css_first("main") or tree.css_first("[role=main]")
    articles = tree.css("article")
    if root is None and len(articles) == 1:
        root = articles[0]
    if root is None:
        root = tree.body
        # Not inside main or article, where a header is that of the text.
        for frame in tree.css(", ".join(_FRAME)):
            frame.decompose()
    if root is None:
        return name, ""
    lines: list[str] = [""]
    _write(root, lines, 0)
    return name, _tidy(lines)


def _write(node: LexborNode, lines: list[str], depth: int) -> None:
    child = node.child
    while child is not None:
        tag = child.tag or ""
        if tag == "-text":
            _say(lines, child.text(deep=False))
        elif tag.startswith(("-", "_")):
            pass  # comments and the like
        elif depth > _DEPTH:
            _say(lines, child.text(separator=" "))
        elif tag == "pre":
            lines += ["", "```", *child.text().strip("\n").split("\n"), "```", ""]
        elif len(tag) == 2 and tag[0] == "h" and tag[1] in "123456":
            lines += ["", f"{'#' * int(tag[1])} {' '.join(child.text().split())}", ""]
        elif tag == "br":
            lines.append("")
        elif tag in ("li", "tr"):
            if lines[-1]:
                lines.append("")
            lines[-1] = "- " if tag == "li" else ""
            _write(child, lines, depth + 1)
            lines.append("")
        elif tag in ("td", "th"):
            _write(child, lines, depth + 1)
            _say(lines, " | ")
        elif tag in _BLOCKS:
            lines += ["", ""]
            _write(child, lines, depth + 1)
            lines += ["", ""]
        else:
            _write(child, lines, depth + 1)
        child = child.next


def _say(lines: list[str], text: str) -> None:
    """Go on with the last line; runs of white space are one space, as a browser shows them."""
    words = " ".join(text.split())
    if not words:
        if text and lines[-1] and not lines[-1].endswith(" "):
            lines[-1] += " "
        return
    before = " " if text[0].isspace() and lines[-1] and not lines[-1].endswith(" ") else ""
    lines[-1] += before + words + (" " if text[-1].isspace() else "")


def _tidy(lines: list[str]) -> str:
    """No more than one empty line in a row."""
    kept: list[str] = []
    for line in lines:
        line = line.rstrip().removesuffix(" |").rstrip()
        if (line and line != "-") or (kept and kept[-1]):
            kept.append("" if line == "-" else line)
    return "\n".join(kept).strip()
