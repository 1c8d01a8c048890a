"""Self-contained HTML pages: one stylesheet, one frame, no file or network access when read.

A page is a jinja2 template of this folder that extends `base.html`. The stylesheet is written into
the page; pictures and figures go in as data URIs and inline SVG. It knows light and dark screens,
small ones and paper.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.errors import VTCError

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """A page as text. Every value is escaped, unless it is a `markupsafe.Markup`.

    Args:
        template: file name in this folder.
        values: what the template uses; `base.html` wants `title`, and `lead`, `sections` (pairs of
            id and heading) and `scripts`, names of files here, if there are any.

    Raises:
        VTCError: jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise VTCError("pages need jinja2: pip install 'vtc-vlm[eval]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values) + "\n"


def data_uri(image: Image, quality: int = 86) -> str:
    """A picture as the `src` of an `<img>`."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
