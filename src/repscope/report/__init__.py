"""Figures, claims and pages from results. Knows tables and charts; no network, no study, no torch."""
