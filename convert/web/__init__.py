"""A bundle as a static web page that generates in the browser."""

from convert.web.export import export_web

__all__ = ["export_web"]
