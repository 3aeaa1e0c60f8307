"""What training does to a network: runs of one recipe, the paths between them, and the basins that they end in."""
