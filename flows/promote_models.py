"""Old name of :mod:`flows.promote`, for deployments made with it as their entrypoint."""

from flows.promote import promote

__all__ = ["promote"]
