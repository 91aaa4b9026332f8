"""What the numbers in NYUv2's files mean where the files do not say: the axes of normals, and the depths.

Three conventions of normals are about, and which one a layout has is nowhere written beside its files:

* Eigen and Fergus (`normals_gt.tgz`): channels are "horizontal; pos right", "depth; pos far", "vertical; pos up", as
  the comments of their published code say (`normals_montage`). The figure in vita-epfl/rock-pytorch's README, whose
  network learnt from these files, shows the same. (omnidata's loader takes the second channel the other way round.)
  MTAN's author took MTAN's normals "directly" from them (lorenmt/mtan, issue 10), and MTAN's flip negates the first
  channel, which fits; `tanganke/nyuv2` is MTAN's set (both inferred).
* Ladicky et al. (`nyu_normals_gt.zip`): measured on the one sample that is public, `test/normal.png` of
  VainF/nyuv2-python-toolkit. A table top has no green, a wall that faces the camera no red, a surface that faces to
  the right is blue: away, down, right (the picture's channels, as they lie, are in reverse order).
* NYUD-MT: read off the 40 cluster centres that brdav/atrc publishes (`nyu_centroids.npy`). No third component is below
  -0.06, so it points to the viewer; tilted floors lie at positive second components, so that is up. The first is the
  one that their loaders' flip negates; that it points to the right and not to the left is assumed, as ASTMT's figure
  of other pictures has it so.

A wrong axis would not change angles between prediction and label, but what is drawn, flipped or derived from normals.
"""

from __future__ import annotations

from simo_merge.data.labels import DepthLabels, NormalsLabels, RegressionLabels

EIGEN = NormalsLabels(axes=("right", "away", "up"), invalid=((0, 0, 0),))
"""Normals of Eigen and Fergus, and what was made of them. Grey (127 or 128) and zero vectors are invalid anyway; black
is, too: no unit vector is stored so."""
LADICKY = NormalsLabels(axes=("away", "down", "right"), invalid=((0, 0, 0),))
NYUD_MT = NormalsLabels(axes=("right", "up", "viewer"), invalid=((0, 0, 0),))

_TYPICAL_DEPTH = 2.5  # metres; about what indoor pictures have, not measured on the set

METRES = DepthLabels(typical=_TYPICAL_DEPTH)
"""Depth in metres, 0 where there is none."""
MILLIMETRES = DepthLabels(scale=0.001, bits=16, typical=_TYPICAL_DEPTH)
TEN_METRES = DepthLabels(scale=10 / 65536, bits=16, typical=_TYPICAL_DEPTH)
"""16 bits for 10 m, as MultiMAE's preparation writes them."""

EDGES = RegressionLabels(value_range=(0.0, 1.0))
EDGES_8BIT = RegressionLabels(scale=1 / 255, bits=8, value_range=(0.0, 1.0))
"""Edges between instances, 0 or 1 (and between, where they were resized)."""
