"""Readers of data sets in folders, as tools write them: COCO, Pascal VOC, YOLO text labels."""
