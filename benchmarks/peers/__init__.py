"""What detres is measured against: the same detector composed of torchvision's classes, and ways to compare them."""

from benchmarks.peers.calling import peer_detections, peer_images, peer_losses, peer_targets
from benchmarks.peers.composition import torchvision_faster_rcnn, torchvision_names
from benchmarks.peers.samples import same_samples, sample_targets

__all__ = [
    "peer_detections",
    "peer_images",
    "peer_losses",
    "peer_targets",
    "same_samples",
    "sample_targets",
    "torchvision_faster_rcnn",
    "torchvision_names",
]
