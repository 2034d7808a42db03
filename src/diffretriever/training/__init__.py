"""Training: texts in, a retriever's checkpoint out, on transformers' Trainer.

    settings.py, model_settings.py, checks.py, recipes.py   what a run is made of; read from YAML
    rows.py, drawing.py             training texts by number; what is drawn of them, by seed
    schedule.py                     the examples of every step; learning rates
    texts.py, salience.py, vocabulary.py    token ids and content words; what the slots should say
    batch.py, building.py           the inputs of one step, as chunks; made of examples
    base.py, module.py              the model to start from; what is trained, read by the code that inference uses
    teacher.py                      the frozen encoder that gives target scores and vectors
    losses.py, objective.py         the objectives; those that look at all texts of a batch
    gathering.py, stepping.py       texts of all processes; the gradients of one step, chunk by chunk
    trainer.py, callbacks.py        the loop, its log and progress bar
    store.py, saving.py, lora.py, card.py   the folder of a run; a model, or adapters, as a folder; its card
    dev.py, estimate.py             a development collection while training; what a run would cost
    run.py                          all of it, from a recipe to a finished model
    mining.py, rankers.py           hard negatives for rows
    adaptation/                     encoders and causal models made into masked-diffusion language models

Run with `diffretriever train RECIPE [--set key=value]`.
"""

from __future__ import annotations
