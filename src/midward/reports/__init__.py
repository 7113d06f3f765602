"""How results are shown: figures, tables, one self-contained HTML page, and the live terminal player.

Nothing here computes a result. Model output is data: escaped everywhere.
"""
