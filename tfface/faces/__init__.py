"""Faces in photos: read, find, align, cover, draw."""
