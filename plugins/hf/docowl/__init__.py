"""Everything of mPLUG-DocOwl1.5."""
