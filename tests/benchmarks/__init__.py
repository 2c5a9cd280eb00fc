"""How fast, as ratios against plain loops and peers, measured side by side in one process: `make bench`."""
