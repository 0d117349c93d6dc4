"""Faster R-CNN on conv4/conv5 (He et al. 2015, Appendix A)."""
