"""An opened model: the seam, graphs, and the layouts that a package can have."""
