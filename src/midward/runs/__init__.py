"""What was measured, of what and how.

`run.Run` and `run.RunFolder` (a record and its folder; no torch), `measure.measure` (the one loop that samples, judges
and appends rows), `workers.spread` (pieces of work, by one process or several), `compare.compare` (two runs, paired),
`generate.generate` (a response for every row of a table).
"""
