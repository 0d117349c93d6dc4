"""The names of the formats of data sets for detection, without what reads and writes them: `--help` needs no numpy."""

FORMAT_NAMES = ("coco", "voc", "yolo", "imagenet_det")
WRITABLE = ("coco", "voc", "yolo")
