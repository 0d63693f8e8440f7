"""Gyre's pure domain: the loop spec, feature algebra, experiments and statistics; nothing here does network I/O."""
