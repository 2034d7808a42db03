"""Training: pairs of texts in, a DiffRetriever checkpoint out.

    config.py     what a run is made of; read from a recipe
    data.py       (query, passage) pairs, drawn by seed and step
    texts.py      token ids, content words and targets of a batch of texts
    salience.py   which words of a text its slots should say
    student.py    the masked language model that is trained, read by the code that inference uses
    teacher.py    the frozen mean-pooling encoder that gives target scores and vectors
    losses.py     the objectives, free of any loop
    trainer.py    the loop: schedule, optimiser, checkpoints, resume
    export.py     fp16 checkpoint folder from a finished run

Run with `python -m diffretriever.training RECIPE [--set key=value]`.
"""

from __future__ import annotations
