"""Layers and networks: frozen values whose learnable parameters are prompts."""

from dln.nn.context import SEPARATOR, LayerInput
from dln.nn.ensemble import AnyNetwork, Ensemble
from dln.nn.layers import ChoiceLayer, LanguageLayer, Layer, PromptedLayer
from dln.nn.parallel import FunctionLayer, Parallel, function_layer
from dln.nn.prediction import abstention_threshold
from dln.nn.prompt import Demonstration, Prompt
from dln.nn.readout import LabelReadout, Readout, WordReadout
from dln.nn.saving import load_network, load_state_dict, save_network
from dln.nn.sequential import AnyLayer, Prediction, Sequential, Trace
from dln.nn.structured import OrdinalReadout, SetReadout
from dln.nn.template import Template, load_template, template_names

__all__ = [
    "SEPARATOR",
    "AnyLayer",
    "AnyNetwork",
    "ChoiceLayer",
    "Demonstration",
    "Ensemble",
    "FunctionLayer",
    "LabelReadout",
    "LanguageLayer",
    "Layer",
    "LayerInput",
    "OrdinalReadout",
    "Parallel",
    "Prediction",
    "Prompt",
    "PromptedLayer",
    "Readout",
    "Sequential",
    "SetReadout",
    "Template",
    "Trace",
    "WordReadout",
    "abstention_threshold",
    "function_layer",
    "load_network",
    "load_state_dict",
    "load_template",
    "save_network",
    "template_names",
]
