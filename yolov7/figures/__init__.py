"""The YOLOv9 paper's pictures of networks at work, drawn again with figures beside them (section 5.5)."""
