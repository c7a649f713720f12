"""What the guard costs, as a ratio to a floor measured in the same run.

``python -m bench`` (``make bench``) compares it with the floor and with other packages, ``python -m bench.scale`` shows
how it grows with workers, records and bodies, ``python -m bench.waiting`` how soon a waiting request hears of the
outcome. Each writes its section of ``bench/RESULTS.md``.
"""
