"""Which tasks help or hurt each other in one encoder, told before anything is trained."""

from simo_merge.affinity.matrix import AffinityMatrix, Needs

__all__ = ["AffinityMatrix", "Needs"]
