"""Figures: pictures of the studies, drawn by matplotlib as SVG."""

from __future__ import annotations
