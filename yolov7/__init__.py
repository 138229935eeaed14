"""YOLOv7."""
