"""Image classification (He et al. 2015, §3 and §4)."""
