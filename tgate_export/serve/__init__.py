"""An HTTP server over bundles: OpenAI's and A1111's APIs, a page, metrics; batched in flight."""

from tgate_export.serve.app import create_app
from tgate_export.serve.options import ServeOptions
from tgate_export.serve.pool import ModelPool

__all__ = ["ModelPool", "ServeOptions", "create_app"]
