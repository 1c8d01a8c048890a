"""`python -m vtc.eval report`: runs in, one page with tables, figures and statements out.

`runs` reads the folders and refuses what cannot be compared, `results` turns answers into figures
with intervals, `charts` draws, `kept` makes pictures of kept tokens again, `write` puts the files
down. `docs/reports.md` explains how to read the page.
"""
