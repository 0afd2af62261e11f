"""Wrong calls of the public API: each ends in one clear error, and none gives an answer.

Every case says which argument the message must name. The error is an `InputError` with what was got, what was
expected and what to write instead.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dln
from dln import data, train
from dln.errors import CorruptDataError
from dln.nn import LayerInput, load_state_dict, template_names
from dln.nn.saving import network_from_json, network_to_json
from dln.random import Key

TABLE = {"": {" yes": 0.5, " no": 0.5}}
LM = dln.TableLM.random([" yes", " no"], seed=1)
YES_NO: list[Any] = ["yes", "no"]
CHOICE = dln.ChoiceLayer(LM, labels=YES_NO)
NETWORK = dln.Sequential(CHOICE)
PAIRS = [("one", "yes"), ("two", "no"), ("three", "yes"), ("four", "no")]
DATA = dln.Dataset.from_pairs(PAIRS, YES_NO, name="toy")
EMPTY = dln.Dataset((), ("yes", "no"))
FREE = dln.Dataset.from_pairs([("a", "b")])
TASK = dln.Task("toy", "Say yes or no.", ("yes", "no"), DATA, DATA, DATA, data.exact_match)
EVALUATION = dln.evaluate(NETWORK, DATA)
STORE = dln.Store(":memory:")
NAN, INF = float("nan"), float("inf")


def fit(**changes: Any) -> object:
    return dln.fit(**{"network": NETWORK, "train": DATA, "dev": DATA, "steps": 0, **changes})


def evaluate(**changes: Any) -> object:
    return dln.evaluate(**{"network": NETWORK, "dataset": DATA, **changes})


def choice(*args: Any, **changes: Any) -> object:
    return dln.ChoiceLayer(*(args or (LM,)), **{"labels": YES_NO, **changes})


def template(**changes: Any) -> object:
    return dln.Template(**{"name": "mine", "version": 1, "kind": "forward", "text": "{{ prompt }} {{ x }}", **changes})


def written(folder: Path, content: str) -> Path:
    file = folder / "file.json"
    file.write_text(content, encoding="utf-8")
    return file


def call(function: Any, *args: Any, **kwargs: Any) -> Callable[[Path], object]:
    return lambda _: function(*args, **kwargs)


Case = tuple[str, Callable[[Path], object]]

PREDICT: list[Case] = [
    ("'x'", call(NETWORK.predict, 5)),
    ("'x'", call(NETWORK.predict, None)),
    ("'x'", call(NETWORK.predict, {"text": "a"})),
    ("'x'", call(NETWORK.predict, b"a")),
    ("x[1]", call(NETWORK.predict, ["a", 5])),
    ("x[0]", call(NETWORK.predict, [["a"]])),
    ("'x'", call(NETWORK.predict, {"a", "b"})),
    ("x=list(x)", call(NETWORK.predict, np.array(["a"]))),
    ("x=list(x)", call(NETWORK.predict, (text for text in "ab"))),
    ("x[0]", call(NETWORK.predict, DATA)),
    ("'x'", call(NETWORK.predict)),
    ("'samples'", call(NETWORK.predict, "a", samples=0)),
    ("'samples'", call(NETWORK.predict, "a", samples=True)),
    ("'samples'", call(NETWORK.predict, "a", samples=2.0)),
    ("'seed'", call(NETWORK.predict, "a", seed="x")),
    ("'seed'", call(NETWORK.predict, "a", seed=-1)),
    ("'sample'", call(NETWORK.predict, "a", sample=3)),
    ("'x'", call(NETWORK.predict_many, "abc")),
    ("'x'", call(NETWORK.predict_many, None)),
    ("'key'", call(NETWORK.sample, 13, ["a"])),
    ("'x'", call(NETWORK.sample, Key(1), "a")),
    ("'trace'", call(NETWORK.log_prob, "a")),
]

LAYERS: list[Case] = [
    ("'labels'", call(choice, labels="abc")),
    ("'labels'", call(choice, labels=["yes"])),
    ("'labels'", call(choice, labels=[])),
    ("'labels'", call(choice, labels=["yes", "yes"])),
    ("'labels'", call(choice, labels=["yes", ""])),
    ("'labels'", call(choice, labels=["yes", "  "])),
    ("'labels'", call(choice, labels=["yes|no", "no"])),
    ("labels[1]", call(choice, labels=["yes", 1])),
    ("labels[0]", call(choice, labels=[True, False])),
    ("'labels'", call(choice, labels={"yes": 1, "no": 0})),
    ("'labels'", call(choice, labels={"yes", "no"})),
    ("'labels'", call(choice, labels=None)),
    ("'labels'", call(choice, labels=2)),
    ("'lable'", call(choice, lable=YES_NO)),
    ("'bias'", call(choice, bias=[1.0])),
    ("'bias'", call(choice, bias="ab")),
    ("bias[1]", call(choice, bias=[0.0, NAN])),
    ("'bias'", call(choice, bias=np.array([0.0, NAN]))),
    ("'temperature'", call(choice, temperature=0)),
    ("'temperature'", call(choice, temperature="hot")),
    ("'temperature'", call(choice, temperature=INF)),
    ("'lm'", call(choice, None)),
    ("'lm'", call(choice, 5)),
    ("lm", call(choice, "smolm2")),
    ("'lm'", call(choice, dln.TableLM)),
    ("'lm'", call(choice, NETWORK)),
    ("template", call(choice, template="clasify")),
    ("'template'", call(choice, template=5)),
    ("template", call(choice, template="backward")),
    ("template", call(choice, template="classify@99")),
    ("'prompt'", call(choice, prompt=5)),
    ("'prompt'", call(choice, prompt=["a"])),
    ("'prompt'", call(choice, prompt=None)),
    ("'prompt'", call(CHOICE.with_prompt, 5)),
    ("'bias'", call(CHOICE.with_calibration, None, 1.0)),
    ("'temperature'", call(CHOICE.with_calibration, [0.0, 0.0], -1.0)),
    ("inputs[0]", call(CHOICE.label_log_probs, ["a"])),
    ("target", call(CHOICE.index, "maybe")),
    ("'sampling'", call(dln.LanguageLayer, LM, sampling={"temperature": 1})),
    ("'sampling'", call(dln.LanguageLayer, LM, sampling=0.7)),
    ("'lm'", call(dln.LanguageLayer)),
    ("'labels'", call(dln.LanguageLayer, LM, labels=YES_NO)),
    ("'layers'", call(dln.Sequential)),
    ("layers[0]", call(dln.Sequential, "abc")),
    ("layers[0]", call(dln.Sequential, 5)),
    ("layers[0]", call(dln.Sequential, dln.ChoiceLayer)),
    ("layers", call(dln.Sequential, [CHOICE, None])),
    ("layer 0", call(dln.Sequential, CHOICE, CHOICE)),
    ("'prompts'", call(NETWORK.with_prompts, "a")),
    ("'prompts'", call(NETWORK.with_prompts, ["a", "b"])),
    ("'position'", call(NETWORK.with_layer, 7, CHOICE)),
    ("'position'", call(NETWORK.with_layer, "0", CHOICE)),
    ("'layer'", call(NETWORK.with_layer, 0, LM)),
    ("members", call(dln.Ensemble, [])),
    ("'members'", call(dln.Ensemble, NETWORK)),
    ("members[0]", call(dln.Ensemble, [CHOICE])),
    ("weights", call(dln.Ensemble, [NETWORK], [1.0, 2.0])),
    ("weights", call(dln.Ensemble, [NETWORK], [-1.0])),
    ("weights[0]", call(dln.Ensemble, [NETWORK], ["1"])),
    ("weights", call(dln.Ensemble, [NETWORK, NETWORK], [0.0, 0.0])),
]

PROMPTS: list[Case] = [
    ("instructions", call(dln.Prompt.from_json, {"instructions": "a"})),
    ("instruction", call(dln.Prompt.from_json, {"instruction": 5})),
    ("prompt", call(dln.Prompt.from_json, ["a"])),
    ("prompt", call(dln.Prompt.from_json, None)),
    ("demonstrations.0.z", call(dln.Prompt.from_json, {"demonstrations": [{"x": "a", "h": "a", "y": "b", "z": "c"}]})),
    ("demonstrations.0.y", call(dln.Prompt.from_json, {"demonstrations": [{"x": "a", "h": "a"}]})),
    ("'instruction'", call(dln.Prompt, 5)),
    ("'instruction'", call(dln.Prompt, None)),
    ("'demonstrations'", call(dln.Prompt, "a", "b")),
    ("demonstrations[0]", call(dln.Prompt, "a", [("x", "y")])),
    ("'wording'", call(dln.Prompt, "a", (), "Input/Label")),
    ("'wording'", call(dln.Prompt, "a", (), ("Input",))),
    ("'instructions'", call(dln.Prompt, instructions="a")),
    ("'y'", call(dln.Demonstration, "a", "a")),
    ("'y'", call(dln.Demonstration, "a", "a", 1)),
    ("'x'", call(dln.Demonstration, None, "a", "b")),
    ("'output'", call(dln.Demonstration, x="a", h="a", output="b")),
    ("'text'", call(template, text="Hello.")),
    ("'text'", call(template, text="{{ x")),
    ("'text'", call(template, text=5)),
    ("template mine", call(template, text="{{ imput }} {{ x }}")),
    ("template mine", call(template, text="{{ input_name }} {{ x }}")),
    ("'kind'", call(template, kind="forwrd")),
    ("'version'", call(template, version="1")),
    ("'version'", call(template, version=0)),
    ("'name'", call(template, name="")),
    ("stop[0]", call(template, stop=[5])),
    ("txt", call(dln.Template.from_json, {"name": "a", "version": 1, "kind": "forward", "txt": "{{ x }}"}, "here")),
    ("template", call(dln.load_template, "thnk")),
    ("'name'", call(dln.load_template, 5)),
    ("'kind'", call(dln.load_template, "think", "sideways")),
    ("'kind'", call(template_names, "sideways")),
    ("nowhere.yaml", call(dln.load_template, "nowhere.yaml")),
]

DATASETS: list[Case] = [
    ("pairs[0]", call(dln.Dataset.from_pairs, ["ab", "cd"])),
    ("pairs[1]", call(dln.Dataset.from_pairs, [("a", "b"), ("c",)])),
    ("pairs[0]", call(dln.Dataset.from_pairs, [("a", "b", "c")])),
    ("pairs[0][1]", call(dln.Dataset.from_pairs, [("a", 1)])),
    ("pairs[0][0]", call(dln.Dataset.from_pairs, [(None, "b")])),
    ("pairs[0]", call(dln.Dataset.from_pairs, [{"input": "a", "target": "b"}])),
    ("'pairs'", call(dln.Dataset.from_pairs, {"a": "b"})),
    ("'pairs'", call(dln.Dataset.from_pairs, "ab")),
    ("'pairs'", call(dln.Dataset.from_pairs, None)),
    ("pairs[0]", call(dln.Dataset.from_pairs, (row for row in [("a",)]))),
    ("labels", call(dln.Dataset.from_pairs, PAIRS, ["yes"])),
    ("labels", call(dln.Dataset.from_pairs, PAIRS, ["yes", "yes"])),
    ("labels", call(dln.Dataset.from_pairs, PAIRS, [])),
    ("labels", call(dln.Dataset.from_pairs, PAIRS, ["yes", "no", ""])),
    ("'labels'", call(dln.Dataset.from_pairs, PAIRS, "yes")),
    ("examples[0]", call(dln.Dataset, PAIRS)),
    ("'examples'", call(dln.Dataset, "ab")),
    ("'name'", call(dln.Dataset, (), name=5)),
    ("'target'", call(dln.Example, "a")),
    ("'target'", call(dln.Example, "a", 1)),
    ("'input'", call(dln.Example, None, "b")),
    ("indices", call(DATA.select, [0, 99])),
    ("indices[0]", call(DATA.select, ["0"])),
    ("'indices'", call(DATA.select, 3)),
    ("labels", call(DATA.with_labels, "yes")),
    ("labels", call(DATA.with_labels, 5)),
    ("examples[0]", call(DATA.with_examples, [("a", "b")])),
    ("nowhere.csv", call(dln.Dataset.from_csv, "nowhere.csv")),
    ("'path'", call(dln.Dataset.from_csv, 5)),
    ("'delimiter'", call(dln.Dataset.from_csv, "a.csv", delimiter=5)),
    ("'column'", call(dln.Dataset.from_csv, "a.csv", column="text")),
    ("nowhere.jsonl", call(dln.Dataset.from_jsonl, "nowhere.jsonl")),
    ("frame", call(dln.Dataset.from_pandas, "frame", "a", "b")),
    ("sizes", call(data.split, DATA, (0.5, -0.1), 1)),
    ("sizes", call(data.split, DATA, (), 1)),
    ("sizes", call(data.split, DATA, (99,), 1)),
    ("'sizes'", call(data.split, DATA, 0.5, 1)),
    ("sizes[0]", call(data.split, DATA, ("half",), 1)),
    ("'seed'", call(data.split, DATA, (0.5,), "x")),
    ("'dataset'", call(data.split, PAIRS, (0.5,), 1)),
    ("'batch_size'", call(data.batch_indices, DATA, 0, Key(1))),
    ("batch_size", call(data.batch_indices, DATA, 99, Key(1))),
    ("'key'", call(data.batch_indices, DATA, 2, 1)),
    ("qestions", call(dln.load_task, "qestions")),
    ("'name'", call(dln.load_task, 5)),
    ("'name'", call(dln.load_task, None)),
    ("'seed'", call(dln.load_task, "questions", seed="x")),
    ("'leaky'", call(dln.load_task, "navigate", leaky="no")),
    ("questions", call(dln.load_task, "questions", leaky=True)),
    ("'sed'", call(dln.load_task, "questions", sed=1)),
    ("data", call(dln.load_task, "navigate", data="/nowhere")),
    ("dev_fraction", call(dln.Task.from_dataset, DATA, dev_fraction=-0.5)),
    ("dev_fraction", call(dln.Task.from_dataset, DATA, dev_fraction=0.6, test_fraction=0.6)),
    ("'dev_fraction'", call(dln.Task.from_dataset, DATA, dev_fraction="half")),
    ("'dataset'", call(dln.Task.from_dataset, PAIRS)),
    ("'instruction'", call(dln.Task.from_dataset, DATA, instruction=5)),
    ("metric", call(dln.Task.from_dataset, DATA, metric="exactmatch")),
    ("'metric'", call(TASK.with_metric, 5)),
    ("nowhere.csv", call(dln.task_from_file, "nowhere.csv")),
    ("file.json", lambda folder: dln.task_from_file(written(folder, "{}"))),
    ("'test'", call(dln.Task, "a", "b", ("yes", "no"), DATA, DATA)),
    ("'train'", call(dln.Task, "a", "b", ("yes", "no"), PAIRS, DATA, DATA, data.exact_match)),
    ("toy.dev", call(dln.Task, "toy", "b", ("yes", "no"), DATA, EMPTY, DATA, data.exact_match)),
    ("toy.train", call(dln.Task, "toy", "b", ("a", "b"), DATA, DATA, DATA, data.exact_match)),
]


class NoScore:
    def __call__(self, prediction: str, target: str) -> str:
        return "good"


METRICS: list[Case] = [
    ("metric", call(evaluate, metric="exact_mach")),
    ("metric", call(evaluate, metric="nowhere:nothing")),
    ("metric", call(evaluate, metric="json:nothing")),
    ("'metric'", call(evaluate, metric=5)),
    ("'metric'", call(evaluate, metric=None)),
    ("'metric'", call(evaluate, metric=["exact_match"])),
    ("NoScore", call(evaluate, metric=NoScore)),
    ("NoScore", call(evaluate, metric=NoScore())),
    ("metric", call(evaluate, metric=lambda prediction: 1.0)),
    ("<lambda>", call(evaluate, metric=lambda p, t: "1")),
    ("<lambda>", call(evaluate, metric=lambda p, t: None)),
    ("<lambda>", call(evaluate, metric=lambda p, t: NAN)),
    ("<lambda>", call(evaluate, metric=lambda p, t: 2)),
    ("<lambda>", call(evaluate, metric=lambda p, t: -0.1)),
    ("<lambda>", call(evaluate, metric=lambda p, t: (1.0, "good"))),
    ("max", call(evaluate, metric=max)),
    ("'value'", call(dln.Score, 2.0)),
    ("'value'", call(dln.Score, "1")),
    ("'value'", call(dln.Score, NAN)),
    ("'feedback'", call(dln.Score, 1.0, 5)),
    ("'metric'", call(dln.load_metric, None)),
    ("metric", call(data.accuracy, ["a"], ["a"], "exactmatch")),
    ("predictions", call(data.accuracy, ["a"], ["a", "b"])),
    ("'predictions'", call(data.accuracy, "a", "a")),
    ("<lambda>", call(fit, metric=lambda p, t: "1")),
    ("metric", call(fit, metric="exactmatch")),
]

TRAINING: list[Case] = [
    ("'steps'", call(fit, steps=-1)),
    ("'steps'", call(fit, steps="5")),
    ("'steps'", call(fit, steps=True)),
    ("'steps'", call(fit, steps=2.5)),
    ("'steps'", call(fit, steps=NAN)),
    ("'seed'", call(fit, seed="x")),
    ("'seed'", call(fit, seed=1.5)),
    ("'run_dir'", call(fit, run_dir=5)),
    ("'callbacks'", call(fit, callbacks=print)),
    ("callbacks[0]", call(fit, callbacks=["print"])),
    ("'callbacks'", call(fit, callbacks=5)),
    ("preset", call(fit, preset="papers")),
    ("'preset'", call(fit, preset=5)),
    ("stepz", call(fit, options={"stepz": 5})),
    ("num_hiden", call(fit, options={"inference": {"num_hiden": 5}})),
    ("num_hidden", call(fit, options={"inference": {"num_hidden": 0}})),
    ("num_hidden", call(fit, options={"inference": {"num_hidden": "5"}})),
    ("score", call(fit, options={"inference": {"score": "logprob"}})),
    ("backward_template", call(fit, options={"inference": {"backward_template": "nowhere"}})),
    ("'options'", call(fit, options="paper")),
    ("'options'", call(fit, options=["steps"])),
    ("'network'", call(fit, network=CHOICE)),
    ("'network'", call(fit, network=None)),
    ("'network'", call(fit, network=LM)),
    ("'train'", call(fit, train=PAIRS)),
    ("'train'", call(fit, train=TASK)),
    ("'dev'", call(fit, dev=PAIRS)),
    ("train", call(fit, train=EMPTY)),
    ("dev", call(fit, dev=EMPTY)),
    ("train", call(fit, train=FREE)),
    ("'resume'", call(fit, resume="yes")),
    ("run_dir", call(fit, resume=True)),
    ("'prompt_lm'", call(fit, prompt_lm=5)),
    ("lm", call(fit, prompt_lm="smolm2")),
    ("'hidden_lm'", call(fit, hidden_lm=dln.TableLM)),
    ("'meter'", call(fit, meter=5)),
    ("'readable'", call(fit, readable="abc")),
    ("'stepz'", call(fit, stepz=5)),
    ("'network'", call(dln.fit)),
    ("'dataset'", call(evaluate, dataset=PAIRS)),
    ("toy", call(evaluate, dataset=DATA.with_examples([]))),
    ("dataset", call(evaluate, dataset=FREE)),
    ("'network'", call(evaluate, network=CHOICE)),
    ("'samples'", call(evaluate, samples=-1)),
    ("'chunk'", call(evaluate, chunk=0)),
    ("'progress'", call(evaluate, progress="bar")),
    ("'after'", call(dln.compare, EVALUATION, DATA)),
    ("'after'", call(dln.compare, EVALUATION)),
    ("'before'", call(dln.compare, 0.5, EVALUATION)),
    ("'after'", call(dln.compare, dln.evaluate(NETWORK, DATA[:2]), EVALUATION)),
    ("'inputs'", call(dln.deepened, NETWORK, "abc")),
    ("'inputs'", call(dln.deepened, NETWORK, [])),
    ("'network'", call(dln.deepened, CHOICE, ["a"])),
    ("'shown'", call(dln.deepened, NETWORK, ["a"], -1)),
    ("preset", call(dln.resolve_options, "papr")),
    ("step", call(dln.resolve_options, "default", {"step": 3})),
    ("changes[0]", call(dln.resolve_options, "default", "steps=3")),
    ("steps", call(dln.Options, steps=-1)),
    ("steps", call(dln.Options, steps="3")),
    ("steps", call(dln.Options, steps=True)),
    ("seed", call(dln.Options, seed=None)),
    ("balanced", call(dln.Options, balanced="no")),
    ("balanced", call(dln.Options, balanced=1)),
    ("shown", call(dln.Options, shown=NAN)),
    ("select_by", call(dln.Options, select_by="acuracy")),
    ("inference", call(dln.Options, inference=5)),
    ("num_hidden", call(train.InferenceOptions, num_hidden=0)),
    ("prompt_proposals", call(train.InferenceOptions, prompt_proposals={"rewrit": 1.0})),
    ("prompt_proposals", call(train.InferenceOptions, prompt_proposals={})),
    ("demonstrations", call(train.InferenceOptions, demonstrations=["24"])),
    ("'split'", call(train.conclude, None, NETWORK, DATA, split=5)),
]

MODELS: list[Case] = [
    ("'temperature'", call(dln.Sampling, temperature=-1)),
    ("'temperature'", call(dln.Sampling, temperature="hot")),
    ("'temperature'", call(dln.Sampling, temperature=NAN)),
    ("'temperature'", call(dln.Sampling, temperature=INF)),
    ("'temperature'", call(dln.Sampling, temperature=None)),
    ("'top_p'", call(dln.Sampling, top_p=0)),
    ("'top_p'", call(dln.Sampling, top_p=1.5)),
    ("'max_tokens'", call(dln.Sampling, max_tokens=0)),
    ("'max_tokens'", call(dln.Sampling, max_tokens=True)),
    ("'max_tokens'", call(dln.Sampling, max_tokens=12.5)),
    ("'stop'", call(dln.Sampling, stop="\n")),
    ("stop[0]", call(dln.Sampling, stop=("",))),
    ("'temprature'", call(dln.Sampling, temprature=1.0)),
    ("'tokens'", call(dln.Budget, tokens="many")),
    ("'max_tokens'", call(dln.Budget, max_tokens="many")),
    ("'max_tokens'", call(dln.Budget, max_tokens=-1)),
    ("'max_tokens'", call(dln.Budget, max_tokens=True)),
    ("'max_usd'", call(dln.Budget, max_usd=NAN)),
    ("'max_usd'", call(dln.Budget, max_usd="5")),
    ("'max_calls'", call(dln.Budget, max_calls=0.5)),
    ("'initial'", call(dln.Meter, 5)),
    ("'inner'", call(dln.Metered, "smollm2")),
    ("'budget'", call(dln.Metered, LM, 1000)),
    ("'meter'", call(dln.Metered, LM, meter={})),
    ("'inner'", call(dln.Cached, None, STORE)),
    ("'store'", call(dln.Cached, LM, "cache.sqlite")),
    ("'chunk'", call(dln.Cached, LM, STORE, chunk=0)),
    ("'path'", call(dln.Store, 5)),
    ("'timeout'", call(dln.Store, ":memory:", timeout="long")),
    ("'table'", call(dln.TableLM.from_table, [("a", "b")])),
    ("table['a']", call(dln.TableLM.from_table, {"a": "b"})),
    ("context 'a'", call(dln.TableLM.from_table, {"a": {"yes": 0.5}})),
    ("context 'a'", call(dln.TableLM.from_table, {"a": {}})),
    ("context 'a'", call(dln.TableLM.from_table, {"a": {"yes": 1.5, "no": -0.5}})),
    ("table['a']['yes']", call(dln.TableLM.from_table, {"a": {"yes": "1"}})),
    ("table['a']['yes']", call(dln.TableLM.from_table, {"a": {"yes": NAN}})),
    ("table key 1", call(dln.TableLM.from_table, {1: {"yes": 1.0}})),
    ("context 'default'", call(dln.TableLM.from_table, TABLE, {"yes": 0.2})),
    ("'conditional'", call(dln.TableLM, TABLE)),
    ("context 'a'", lambda _: dln.TableLM(lambda context: {"yes": 2.0}).sample(["a"], dln.Sampling(), [1])),
    ("context 'a'", lambda _: dln.TableLM(lambda context: "yes").sample(["a"], dln.Sampling(), [1])),  # type: ignore[arg-type,return-value]
    ("'texts'", call(dln.TableLM.random, "ab", 1)),
    ("'texts'", call(dln.TableLM.random, [], 1)),
    ("'texts'", call(dln.TableLM.random, ["a", "a"], 1)),
    ("'concentration'", call(dln.TableLM.random, ["a"], 1, 0)),
    ("'seed'", call(dln.TableLM.random, ["a"], "x")),
    ("'contexts'", call(LM.log_prob, "abc", ["a"])),
    ("targets", call(LM.log_prob, ["a", "b"], ["a"])),
    ("labels", call(LM.choice_log_probs, ["a"], [])),
    ("'labels'", call(LM.choice_log_probs, ["a"], "ab")),
    ("'sampling'", call(LM.sample, ["a"], 0.7, [1])),
    ("seeds", call(LM.sample, ["a"], dln.Sampling(), [1, 2])),
    ("lm", call(dln.load_lm, "smolm2")),
    ("lm", call(dln.load_lm, "")),
    ("lm", call(dln.load_lm, "gpt-4")),
    ("'spec'", call(dln.load_lm, None)),
    ("'spec'", call(dln.load_lm, LM)),
    ("'spec'", call(dln.load_lm, Path("model"))),
    ("'devise'", call(dln.load_lm, "smollm2", devise="cpu")),
    ("'batch_rows'", call(dln.load_lm, "smollm2", batch_rows="many")),
    ("'batch_tokens'", call(dln.load_lm, "smollm2", batch_tokens=-1)),
    ("'chat'", call(dln.load_lm, "smollm2", chat="yes")),
    ("'dtype'", call(dln.load_lm, "smollm2", dtype=16)),
    ("dtype", call(dln.load_lm, "smollm2", dtype="float17")),
    ("device", call(dln.load_lm, "smollm2", device="gpuu")),
    ("'timout'", call(dln.load_lm, "vllm/a", timout=5)),
    ("'timeout'", call(dln.load_lm, "vllm/a", base_url="http://localhost:1/v1", timeout="5")),
    ("'max_concurrency'", call(dln.load_lm, "vllm/a", base_url="http://localhost:1/v1", max_concurrency=0)),
    ("'base_url'", call(dln.load_lm, "vllm/a", base_url=5)),
    ("'headers'", call(dln.load_lm, "vllm/a", base_url="http://localhost:1/v1", headers="a: b")),
    ("'best_scoring_mode'", call(dln.load_lm, "vllm/a", base_url="http://localhost:1/v1", best_rung="topk")),
]


def changed(folder: Path, **fields: Any) -> Path:
    """A network file with some top-level fields exchanged, its hash set again."""
    import hashlib

    file = folder / "network.json"
    dln.save_network(NETWORK, file)
    document = json.loads(file.read_text(encoding="utf-8"))
    document.update(fields)
    body = {name: value for name, value in document.items() if name not in ("schema", "sha256")}
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    document["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


def layer_with(**fields: Any) -> list[dict[str, Any]]:
    rows: Any = network_to_json(NETWORK)["layers"]
    return [{**rows[0], **fields}]


FILES: list[Case] = [
    ("'path'", call(dln.load_network, 5)),
    ("'path'", call(dln.load_network, None)),
    ("nowhere.json", call(dln.load_network, "nowhere.json")),
    ("directory", dln.load_network),
    ("network file", lambda folder: dln.load_network(written(folder, "{}"))),
    ("network file", lambda folder: dln.load_network(written(folder, "[1]"))),
    ("'lm'", lambda folder: dln.load_network(changed(folder), 5)),  # type: ignore[arg-type]
    ("lm", lambda folder: dln.load_network(changed(folder), "smolm2")),
    ("lm", lambda folder: dln.load_network(changed(folder))),
    ("lables", lambda folder: dln.load_network(changed(folder, layers=layer_with(lables=["a"])), LM)),
    ("labels", lambda folder: dln.load_network(changed(folder, layers=layer_with(labels="ab")), LM)),
    ("note", lambda folder: dln.load_network(changed(folder, note="x"), LM)),
    ("schema", lambda folder: dln.load_network(changed(folder, schema=9), LM)),
    ("'network'", lambda folder: dln.save_network(CHOICE, folder / "a.json")),  # type: ignore[arg-type]
    ("'network'", lambda folder: dln.save_network(folder / "a.json", NETWORK)),  # type: ignore[arg-type]
    ("'path'", call(dln.save_network, NETWORK, None)),
    ("'path'", call(dln.save_network, NETWORK)),
    ("nowhere", lambda folder: dln.save_network(NETWORK, folder / "nowhere" / "a.json")),
    ("'provenance'", lambda folder: dln.save_network(NETWORK, folder / "a.json", "run 5")),  # type: ignore[arg-type]
    ("'provenance'", lambda folder: dln.save_network(NETWORK, folder / "a.json", {"a": object()})),
    ("layer", call(network_from_json, {"layer": []}, LM)),
    ("layers", call(network_from_json, {}, LM)),
    ("kind", call(network_from_json, {"layers": layer_with(kind="choise")}, LM)),
    ("temprature", call(network_from_json, {"layers": layer_with(temprature=1.0)}, LM)),
    ("'state'", call(load_state_dict, NETWORK, [1])),
    ("state", call(load_state_dict, NETWORK, {"layers": []})),
    ("promt", call(load_state_dict, NETWORK, {"layers": [{"promt": "a"}]})),
    ("layer", call(load_state_dict, NETWORK, {"layer": []})),
    ("bias", call(load_state_dict, NETWORK, {"layers": [{"prompt": {"instruction": "a"}, "bias": [1.0]}]})),
]

CASES = [*PREDICT, *LAYERS, *PROMPTS, *DATASETS, *METRICS, *TRAINING, *MODELS, *FILES]


def test_the_table_is_long_enough():
    assert len(CASES) >= 100


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: f"{n}-{CASES[n][0]}")
def test_a_wrong_call_is_refused_with_what_is_wrong_about_it(number: int, tmp_path: Path):
    named, misuse = CASES[number]
    with pytest.raises(dln.InputError) as caught:
        misuse(tmp_path)
    error = caught.value
    assert named in str(error)
    assert error.got is not None, "the message says what was got"
    assert error.expected is not None, "the message says what was expected"
    assert error.fix, "the message says what to write instead"


def test_a_damaged_network_file_is_refused(tmp_path: Path):
    with pytest.raises(CorruptDataError):
        dln.load_network(written(tmp_path, "{"))


EXEMPT = {
    "DataSpec",
    "DlnError",
    "InputError",
    "LanguageModel",
    "Metric",
    "Options",
    "Evaluation",
    "FitResult",
    "Prediction",
}
EXEMPT |= {
    "Calibrator",
    "Callback",
    "HiddenProposal",
    "Objective",
    "Penalty",
    "PromptProposal",
    "Selector",
    "WeightTerm",
}
EXEMPT |= {"Calibration", "Candidates", "Evidence", "Feedback", "HiddenDraw", "HiddenRequest", "Proposal", "Scored"}
EXEMPT |= {"Layer", "Readout"}  # contracts, whose methods users write
EXEMPT |= {"DLNClassifier"}  # an estimator of scikit-learn, which checks its arguments in `fit`
EXEMPT |= {
    "Capabilities",
    "Completion",
    "ExpectedLogProb",
    "FixedOutput",
    "History",
    "Key",
    "NextTokens",
    "ProgramResult",
    "Progress",
    "Rollout",
    "Stage",
    "Token",
    "Trace",
}
"""Errors, protocols, the options (which check themselves), values that the library alone makes, and those that the
training step and its parts hand each other thousands of times."""


def test_every_public_name_checks_its_arguments():
    unchecked: list[str] = []
    for name in sorted(set(dln.__all__) - EXEMPT - {"__version__"}):
        target = getattr(dln, name)
        members = [target]
        if inspect.isclass(target):
            members = [
                getattr(member, "__func__", member)
                for part, member in vars(target).items()
                if part == "__init__" or not part.startswith("_")
            ]
        unchecked += [
            f"{name}.{member.__name__}"
            for member in members
            if inspect.isfunction(member) and not getattr(member, "__checked__", False)
        ]
    assert not unchecked


def test_lists_give_lists():
    many = NETWORK.predict(["one", "two"])
    assert many == [NETWORK.predict("one"), NETWORK.predict("two")]
    assert NETWORK.predict(("one",)) == many[:1]
    assert NETWORK.predict([]) == []
    together = dln.Ensemble([NETWORK, NETWORK])
    assert together.predict(["one", "two"]) == [together.predict("one"), together.predict("two")]


class Similar:
    """A metric as an object, without a name."""

    def __call__(self, prediction: str, target: str) -> float:
        return 1.0 if prediction == target else 0.25


def overlap(prediction: str, target: str, least: float = 0.0) -> float:
    return max(least, float(prediction == target))


METRIC_KINDS: list[Any] = [
    overlap,
    lambda prediction, target: prediction == target,
    functools.partial(overlap, least=0.1),
    Similar(),
    lambda prediction, target: np.float32(0.5),
    lambda prediction, target: dln.Score(0.5, "half right"),
    "exact_match",
    data.ExactMatch(),
]


@pytest.mark.parametrize("metric", METRIC_KINDS, ids=lambda metric: str(getattr(metric, "__name__", metric))[:20])
def test_a_metric_is_a_callable_or_a_name_everywhere(metric: Any, tmp_path: Path):
    scores = dln.evaluate(NETWORK, DATA, metric=metric).scores
    assert all(type(score) is float and 0.0 <= score <= 1.0 for score in scores)
    options = {"inference": {"num_prompts": 1, "prompt_proposals": {"demonstrations": 1.0}}, "shown": 0.0}
    result = dln.fit(NETWORK, DATA, DATA, steps=1, metric=metric, options=options, run_dir=tmp_path / "run")
    task = dln.Task("toy", "Say it.", ("yes", "no"), DATA, DATA, DATA, metric)
    assert task.with_metric(metric).metric == task.metric
    final = train.conclude(NETWORK, result.network, task.test, metric=task.metric)
    assert final.after.n == len(DATA)
    assert train.fitted_initial(NETWORK, DATA, metric, dln.Options()) is not None


def test_the_feedback_of_a_metric_is_kept():
    found = dln.evaluate(NETWORK, DATA, metric=lambda p, t: dln.Score(float(p == t), f"wanted {t}"))
    assert found.feedback == tuple(f"wanted {t}" for t in DATA.targets)
    assert set(EVALUATION.feedback) == {""}


def deep_copies() -> list[Any]:
    metered = dln.Metered(dln.Cached(LM, STORE), dln.Budget(max_calls=1000))
    hidden = dln.LanguageLayer(metered, prompt=dln.Prompt("a", (dln.Demonstration("x", "x", "y"),)))
    network = dln.Sequential(hidden, dln.ChoiceLayer(metered, labels=YES_NO, bias=[0.5, 0.0]))
    result = dln.fit(dln.Sequential(CHOICE), DATA, DATA, steps=0)
    return [hidden, CHOICE, network, dln.Ensemble([network]), TASK, DATA, EVALUATION, result, {"networks": [network]}]


@pytest.mark.parametrize("position", range(9))
def test_deep_copies_share_their_models(position: int):
    original = deep_copies()[position]
    copied = copy.deepcopy(original)
    assert type(copied) is type(original)
    if isinstance(original, dln.Sequential):
        assert copied is not original and copied.layers[0] is not original.layers[0]
        assert copied.layers[0].lm is original.layers[0].lm
        assert copied.state_dict() == original.state_dict()
        assert copied.predict("one") == original.predict("one")
    copy.copy(original)


def test_a_copied_meter_counts_on_by_itself():
    meter = dln.Meter()
    network = dln.Sequential(dln.ChoiceLayer(dln.Metered(LM, meter=meter), labels=YES_NO))
    network.predict("one")
    copied = copy.deepcopy(meter)
    network.predict("two")
    assert (copied.snapshot().calls, meter.snapshot().calls) == (1, 2)


def test_a_network_loads_without_a_model_from_file_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def load(name: str) -> dln.LanguageModel:
        asked.append(name)
        return LM

    monkeypatch.setattr("dln.nn.saving.load_lm", load)
    monkeypatch.setattr("dln.lm.load.load_lm", load)
    deep = dln.Sequential(dln.LanguageLayer(LM), CHOICE)
    dln.fit(deep, DATA, DATA, steps=0, run_dir=tmp_path / "run")
    for place in (tmp_path / "run", tmp_path / "run" / "network.json", str(tmp_path / "run")):
        asked.clear()
        assert dln.load_network(place).parameters() == deep.parameters()
        assert asked == [LM.name], "one model that two layers name is loaded once"
    asked.clear()
    assert dln.load_network(tmp_path / "run", lm="smollm2").parameters() == deep.parameters()
    assert dln.LanguageLayer("smollm2").lm is LM and dln.ChoiceLayer("smollm2", labels=YES_NO).lm is LM
    assert asked == ["smollm2"] * 3


def test_layer_inputs_are_checked():
    with pytest.raises(dln.InputError, match="'h'"):
        LayerInput("a", 5)  # type: ignore[arg-type]


def test_unknown_keys_of_a_checkpoint_are_refused(tmp_path: Path):
    from dln.train.progress import Progress

    dln.fit(NETWORK, DATA, DATA, steps=0, run_dir=tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "checkpoint.json").read_text(encoding="utf-8"))["progress"]
    assert Progress.from_json(saved, NETWORK).state.step == 0
    saved["kept"][0]["scores"] = saved["kept"][0].pop("score")
    with pytest.raises(dln.InputError, match=r"kept\.0\.scores"):
        Progress.from_json(saved, NETWORK)
    with pytest.raises(dln.InputError, match="steps"):
        Progress.from_json({"steps": 3}, NETWORK)
