"""Studies: what a K costs and brings, how long it takes, and the page that shows it.

Three studies write one JSON file each, and a report lays them out beside the results of `diffretriever evaluate`:
the grid of (K_q, K_p) with the headroom of a choice per query, the latency of encoding and searching, and the numbers
that the paper published.
"""

from __future__ import annotations
