"""An opened model: the seam, graphs, and the layouts of packages."""
