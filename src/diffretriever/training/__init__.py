"""Training: texts in, a retriever's checkpoint out, on transformers' Trainer.

    settings.py, recipes.py         what a run is made of; read from YAML
    rows.py, drawing.py             training texts by number; what is drawn of them, by seed
    schedule.py                     the examples of every step; learning rates
    texts.py, salience.py, vocabulary.py    token ids and content words; what the slots should say
    batch.py, building.py           the inputs of one step, as chunks; made of examples
    base.py, module.py              the model to start from; what is trained, read by the code that inference uses
    teacher.py                      the frozen encoder that gives target scores and vectors
    losses.py, objective.py         the objectives; those that look at all texts of a batch
    gathering.py, stepping.py       texts of all processes; the gradients of one step, chunk by chunk
    trainer.py, callbacks.py        the loop, its log and progress bar
    store.py, saving.py             the folder of a run; a model as a folder
    run.py                          all of it, from a recipe to a finished model

Run with `diffretriever train RECIPE [--set key=value]`.
"""

from __future__ import annotations
