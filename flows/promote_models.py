"""Old address of :mod:`flows.promote`, for deployments that were made before the flow moved there."""

from flows.promote import promote

__all__ = ["promote"]
