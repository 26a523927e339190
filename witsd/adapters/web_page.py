"""A web page as Markdown: a line of JSON (``charset``, ``url``) and then the page on stdin; JSON on stdout.

A program of its own, because a page is whatever somebody wants it to be.
"""

from __future__ import annotations

import json
import sys
import warnings
from urllib.parse import urljoin

from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning, Tag, XMLParsedAsHTMLWarning
from markdownify import MarkdownConverter

#: Never text, and what frames it.
_NEVER = ("script", "style", "noscript", "template", "svg", "iframe", "object", "canvas", "head")
_FRAME = ("nav", "header", "footer", "aside", "form", "button", "select", "dialog", "[role=navigation]", "[hidden]")
#: Pages are nested this deep at most; what is deeper is left out.
sys.setrecursionlimit(10_000)


def page(data: bytes, charset: str, url: str) -> dict[str, str]:
    """``{title, text}``: of ``main`` or the only ``article`` where there is one, with links that are whole."""
    soup = BeautifulSoup(data, "html.parser", from_encoding=charset or None)
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    for tag in soup(_NEVER):
        tag.decompose()
    articles = soup("article")
    root: Tag = soup.find("main") or soup.select_one("[role=main]") or (articles[0] if len(articles) == 1 else soup)
    if root is soup:
        for tag in soup.select(", ".join(_FRAME)):
            tag.decompose()
    for link in root("a", href=True):
        target = urljoin(url, str(link["href"]))
        if target.startswith(("http://", "https://", "mailto:")):
            link["href"] = target
        else:
            link.unwrap()
    for image in root("img"):
        image.replace_with(str(image.get("alt") or ""))
    text = MarkdownConverter(heading_style="atx", bullets="-").convert_soup(root)
    lines = [line.rstrip() for line in text.splitlines()]
    kept = [line for place, line in enumerate(lines) if line or (place and lines[place - 1])]
    return {"title": title, "text": "\n".join(kept).strip()}


def main() -> None:
    warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
    warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
    head = json.loads(sys.stdin.buffer.readline())
    found = page(sys.stdin.buffer.read(), head["charset"], head["url"])
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
