"""Pure functions on tensors of boxes: geometry, coding, anchors, matching, sampling, suppression."""
