"""Annotation formats: COCO, Pascal VOC, YOLO text files."""
