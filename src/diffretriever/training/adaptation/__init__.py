"""Adaptation: an encoder or a causal language model made into a masked-diffusion language model.

settings.py    what a run computes
base.py        the model to start from: full attention, a mask token, a vocabulary head
corruption.py  which tokens are masked, and what each counts
texts.py       plain texts and the retrieval prompt, drawn by seed and number
objective.py   the loss, and cross entropy on held-out texts
run.py         the run, on transformers' `Trainer`
"""

from __future__ import annotations
