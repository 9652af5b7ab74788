"""Checks that every implementation of a seam runs, and scripted stand-ins for the world."""
