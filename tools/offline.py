"""What a page of HTML would fetch from the net."""

from __future__ import annotations

import re

#: links in the head that are fetched; others, such as the canonical address, are only told
LOADED = re.compile(r"""\brel=["']?[^"'>]*\b(?:stylesheet|icon|preload|modulepreload|manifest)\b""")


def elsewhere(html: str) -> str:
    """The first tag that makes a browser fetch something from the net, else ""."""
    for tag in re.findall(r"<(?:script|img|iframe|link)\b[^>]*>", html):
        fetched = re.search(r"""\b(?:src|href)=["']?(?:https?:)?//""", tag)
        if fetched and (not tag.startswith("<link") or LOADED.search(tag)):
            return str(tag)
    return ""
