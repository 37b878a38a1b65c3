"""Write a model of integers as a circuit in Verilog: ``verilog``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tracetorch.core.checks import check_integer, check_module
from tracetorch.core.files import write_texts
from tracetorch.core.snapshot import restored
from tracetorch.core.torch_private import one_trace_at_a_time, pytree
from tracetorch.export.c_code.read_program import named_leaves
from tracetorch.export.c_code.recorded import RecordedStep, record_step
from tracetorch.export.verilog_code.arrangement import arranged
from tracetorch.export.verilog_code.files import makefile, recorded_files, testbench
from tracetorch.export.verilog_code.network import Network, network
from tracetorch.export.verilog_code.report import VerilogReport
from tracetorch.snn.state_handling import zero_states
from tracetorch.unrolling.inputs import call, parse_inputs
