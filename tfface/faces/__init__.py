"""Faces in photos: read, find, align, cover, draw."""

ALIGNMENTS = ("eyes", "five-point", "margin")
"""Names of the alignments, see `tfface.faces.crops.Alignment`; the name of an aligned data set holds one."""
