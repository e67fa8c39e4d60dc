"""A module for each kind of figure; its ``describe`` yields names with shapes, or with reasons."""
