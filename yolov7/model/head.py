"""Stable address of the anchor head's spec for users' own networks: `from yolov7.model.head import AnchorHead, Level`.

The head lives in `yolov7.model.heads.anchor`. Files such as `my_networks.py` (`train.network: MODULE:FUNCTION`) import
from here, so this address stays.
"""

from yolov7.model.heads.anchor import AnchorHead, Level

__all__ = ["AnchorHead", "Level"]
