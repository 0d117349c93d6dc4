"""The names of the formats of data sets for detection, apart from their table so that `--help` does not import numpy."""

FORMAT_NAMES = ("coco", "voc", "yolo", "imagenet_det")
WRITABLE = ("coco", "voc", "yolo")
