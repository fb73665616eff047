"""From the files of a run to a table, charts and one self-contained page."""
