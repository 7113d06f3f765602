"""Self-contained HTML pages: nothing is fetched, and a content-security policy names each script and style by hash.

A page is made of `Part`s. Under the policy no `style` or `on...` attribute has any effect: use classes, SVG's own
attributes, and listeners.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from midward.errors import InputError
from midward.store import write_text

_JOINERS = "\u200c\u200d"  # words and emoji need them


@dataclass(frozen=True)
class Part:
    """A piece of a page's body.

    Attributes:
        markup: it.
        styles, scripts: files of `templates/` that it needs. Each stands once on a page, styles in the head, scripts
            behind the body in the order of their first mention.
    """

    markup: Markup
    styles: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()


def render(template: str, **values: Any) -> Markup:
    """A template of this room. All values are escaped, but for `Markup`; a name that isn't given is an error."""
    return Markup(_environment().get_template(template).render(**values))


def data(identifier: str, value: Any) -> Markup:
    """A value as JSON in an element that scripts find by its id. No text in it can end the element.

    Raises:
        ValueError: it holds NaN or an infinity, which JSON lacks.
        TypeError: it is no JSON.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # ASCII: U+2028 and lone surrogates are escaped
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup('<script type="application/json" id="{}">{}</script>').format(identifier, Markup(text))


def page(title: str, parts: Sequence[Part]) -> str:
    """The whole page: a header with the title and a switch between light and dark, and the parts."""
    styles = _assets(["base.css", *(name for part in parts for name in part.styles)])
    scripts = _assets(["base.js", *(name for part in parts for name in part.scripts)])
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src {_hashes(styles)}; script-src {_hashes(scripts)}"
    )
    body = Markup("\n").join(part.markup for part in parts)
    return render("page.html.j2", title=title, policy=policy, styles=styles, scripts=scripts, body=body)


def write(path: Path, title: str, parts: Sequence[Part]) -> Path:
    """Write the page to a file, whole or not at all. Lone surrogates in a text, which no file can hold, become `?`."""
    write_text(path, page(title, parts).encode("utf-8", "replace").decode("utf-8"))
    return path


def mark(kind: str) -> Markup:
    """What tells a page that may be written over from any other file: no text on a page can hold it unescaped."""
    return Markup('data-page="midward {}"').format(kind)


def check(page: Path, kind: str, overwrite: bool = False) -> None:
    """Whether a page can be written, before anything is read. overwrite: whatever is there may be replaced.

    Raises:
        InputError: it isn't called as a page is, or would replace what has no `mark` of its kind.
    """
    if page.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {page} isn't called .html; give the name of a page, like {kind}.html.")
    if page.is_dir():
        raise InputError(f"--out {page} is a folder; give the name of a page in it.")
    if page.exists() and not overwrite and mark(kind) not in page.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{page} is there and is no {kind} of midward; give another --out, or remove it.")


def link(path: Path, page: Path) -> str:
    """The address of a file from a page."""
    return quote(os.fsencode(Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix()))


def visible(text: str) -> str:
    """The text with what can't be seen, or turns the text around it, written out: a NUL is ⟨U+0000⟩.

    Line breaks, tabs and the joiners of scripts and emoji stay.
    """
    return "".join(_visible(character) for character in str(text))


def redacted(text: str) -> str:
    """What stands for a text that isn't to be shared: its length and the beginning of its SHA-256."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"[redacted: {len(text)} characters, sha256 {digest[:12]}]"


@cache
def asset(name: str) -> Markup:
    """A script or style of `templates/`, as it stands in a page.

    Raises:
        InputError: its element would end early, or a browser would take its hash over another text.
    """
    text = files("midward.reports").joinpath("templates", name).read_text(encoding="utf-8")
    for wrong in ("</script", "</style", "<!--", "\r", "\0"):
        if wrong in text.lower():
            raise InputError(f"{name} holds {wrong!r}, which an inline script or style can't.")
    return Markup(text)


def _assets(names: Iterable[str]) -> list[Markup]:
    return [asset(name) for name in dict.fromkeys(names)]


def _hashes(texts: Iterable[str]) -> str:
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _visible(character: str) -> str:
    if character.isprintable() or character in "\n\t" or character in _JOINERS:
        return character
    if unicodedata.category(character) in ("Zs", "Co", "Cn"):  # spaces, private use, not in this Python's tables
        return character
    return f"⟨U+{ord(character):04X}⟩"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("midward.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "redacted": redacted, "px": "{:.1f}".format}
    return environment
