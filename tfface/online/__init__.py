"""Faces in moving pictures: capture, detect, track, gather shots, predict, average, draw; and a local web page."""
