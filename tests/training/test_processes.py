"""Several processes train as one does, and a killed process goes on to the same weights.

The processes are forks of one that has imported everything but has computed nothing, which saves the time of imports.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

LOSS = {"dense": 1.0, "sparse": 0.5, "scores": 1.0, "vectors": 2.0, "words": 0.2, "terms": 4.0, "diversity": 0.3}
LOSS |= {"denoising": 0.4, "temperature": 0.02}

COMMON = """
import json, os, signal, socket, sys, time, traceback
import torch, transformers.trainer, accelerate, scipy.optimize, torch.distributed
from torch.distributed.fsdp import fully_shard
from diffretriever.training.gathering import World
from diffretriever.training.recipes import build
from diffretriever.training.run import prepare, train
from diffretriever.training.settings import TrainingSettings
from diffretriever.training.stepping import Engine, take_step
from diffretriever.training.trainer import RetrieverTrainer

def settings(raw, **changes):
    return build(TrainingSettings, json.loads(raw) | changes, "")

def fork(work, *arguments, **environment):
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ.update(environment)
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def wait(pid, wanted=0):
    assert os.waitpid(pid, 0)[1] == wanted, "a process failed"
"""

# Saves the gradients of the first step and the reported loss of rank 0, then trains to the end.
TOGETHER = """
def work(raw, output):
    trainer, _ = prepare(settings(raw, output=output))
    take = trainer.training_step
    def first(model, inputs, *rest):
        loss = take(model, inputs, *rest)
        if trainer.state.global_step == 0 and trainer.args.should_save:
            grads = {n: p.grad.clone() for n, p in trainer.module.named_parameters()}
            torch.save({"grads": grads, "report": trainer.report._asdict()}, output + "/first.pt")
        return loss
    trainer.training_step = first
    trainer.train()

def shard(raw, output):
    torch.distributed.init_process_group("gloo")
    trainer, _ = prepare(settings(raw, output=output))
    module, inputs = trainer.module, trainer.teacher.teach(trainer.train_dataset[0])
    for layer in module.backbone.model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(module)
    report = take_step(module, inputs, trainer.settings.loss, Engine(world=World.here()), one_pass=False)
    grads = {n: p.grad.full_tensor() for n, p in module.named_parameters()}
    if trainer.args.should_save:
        torch.save({"grads": grads, "report": report._asdict()}, output + "/first.pt")

wait(fork(work, sys.argv[1], sys.argv[3] + "/one"))
for name, raw, job in (("two", sys.argv[1], work), ("cached", sys.argv[2], work), ("sharded", sys.argv[2], shard)):
    # Bound for as long as the processes use its number, so that no other program is given it in between.
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(kept.getsockname()[1])}
        ranks = [common | {"RANK": r, "LOCAL_RANK": r} for r in "01"]
        for pid in [fork(job, raw, sys.argv[3] + "/" + name, **rank) for rank in ranks]:
            wait(pid)
"""

# The kill strikes wherever the process is by then, and at its 25th step at the latest: it goes no further by itself.
KILLED = """
def train_in_part(asked):
    take = RetrieverTrainer.training_step
    def held(trainer, *given):
        if trainer.state.global_step == 25:
            time.sleep(600)
        return take(trainer, *given)
    RetrieverTrainer.training_step = held
    train(asked)

raw, folder = sys.argv[1:]
wait(fork(train, settings(raw, output=folder + "/whole")))
pid = fork(train_in_part, settings(raw, output=folder + "/killed"))
log = folder + "/killed/log.jsonl"
while not os.path.isfile(log) or open(log, "rb").read().count(b"\\n") < 7:
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "a process failed"
    time.sleep(0.002)
os.kill(pid, signal.SIGKILL)
wait(pid, signal.SIGKILL)
assert 7 <= open(log, "rb").read().count(b"\\n") < 30
wait(fork(train, settings(raw, output=folder + "/killed")))
assert open(log, "rb").read().count(b"\\n") == 30
"""


def run(program, *arguments):
    paths = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-W", "ignore", "-c", COMMON + program, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | paths, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr


def test_two_processes_give_the_loss_and_gradients_of_one(make_settings, tmp_path):
    """Also where every process computes its chunks twice, and where parameters are spread over the processes.

    Queries have different numbers of hard negatives, and so have the processes.
    """
    changes = {"loss": LOSS, "data": {"sources": [{"path": "negatives.parquet"}], "negatives": 2, "group": 1}}
    whole = make_settings(**changes, optimisation={"steps": 2})
    cached = make_settings(**changes, optimisation={"steps": 2, "one_pass": False})
    run(TOGETHER, whole.to_json(), cached.to_json(), tmp_path)
    names = ("one", "two", "cached", "sharded")
    first = {name: torch.load(tmp_path / name / "first.pt", weights_only=True) for name in names}
    one = first.pop("one")
    final = {name: load_file(tmp_path / name / "checkpoint-2" / "model.safetensors") for name in names[:3]}
    for found in first.values():
        assert found["report"] == pytest.approx(one["report"], rel=1e-4, abs=1e-5)
        assert found["grads"].keys() == one["grads"].keys()
        for parameter, gradient in one["grads"].items():
            torch.testing.assert_close(found["grads"][parameter], gradient, rtol=1e-4, atol=1e-5)
    for name in ("two", "cached"):
        for parameter, weight in final["one"].items():
            torch.testing.assert_close(final[name][parameter], weight, rtol=1e-3, atol=1e-4)


def test_a_killed_run_goes_on_to_the_same_weights(make_settings, tmp_path):
    run(KILLED, make_settings(optimisation={"steps": 30, "save_every": 4}).to_json(), tmp_path)
    for file in ("model.safetensors", "slots.safetensors"):
        one, other = (load_file(tmp_path / name / "model" / file) for name in ("whole", "killed"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
