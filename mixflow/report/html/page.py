"""What all HTML pages have in common: templates, style, scripts, and no network."""

from __future__ import annotations

import base64
import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True)
class Script:
    """Arguments:
    code: JavaScript of ours or of a library's, never text from a program.
    """

    code: str

    @property
    def source(self) -> str:
        """What a content security policy calls it: with this, nothing else in the page runs."""
        digest = hashlib.sha256(self.code.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"


def render_page(template: str, scripts: tuple[Script, ...] = (), **content: Any) -> str:
    """One self-contained page.

    Arguments:
        template: its name; it extends `base.html.j2`.
        scripts: they run in this order, after the page is there.
        content: what the template shows; all of it is escaped.
    """
    return _environment().get_template(template).render(scripts=scripts, **content)


def script_of_ours(name: str) -> Script:
    """A script that comes with the templates."""
    environment = _environment()
    assert environment.loader is not None
    return Script(environment.loader.get_source(environment, name)[0])


@functools.cache
def vega() -> Script:
    """Vega, Vega-Lite and Vega-Embed: `window.vegaEmbed` draws a chart."""
    import vl_convert  # noqa: PLC0415  # large, and for pages alone

    return Script(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  # as vl_convert

    environment = Environment(
        loader=PackageLoader("mixflow.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # a tooltip's rows keep order
    return environment
