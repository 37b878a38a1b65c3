"""Write what tries a network in Verilog: recorded input and output, testbench, Makefile."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tracetorch.export.verilog_code.memories import hex_words
from tracetorch.export.verilog_code.network import Network

_TESTBENCH = """\
// Plays every recorded stream through the network, and compares what it answers.
module testbench;
    reg clk, reset, step;
    wire ready, done;
    integer stream, t, place, wrong, cycles, least, most, total;
{declarations}
    network dut (
        .clk(clk), .reset(reset), .ready(ready), .step(step), .done(done){ports}
    );
    always #1 clk = !clk;
{collected}
    initial begin
{loads}
        clk = 1'b0;
        step = 1'b0;
{silent}
        wrong = 0;
        least = 2147483647;
        most = 0;
        total = 0;
        for (stream = 0; stream < {streams}; stream = stream + 1) begin
            reset = 1'b1;
            @(negedge clk);
            reset = 1'b0;
            while (!ready) @(negedge clk);
            for (t = {steps} * stream; t < {steps} * (stream + 1); t = t + 1) begin
{given}
                step = 1'b1;
                @(negedge clk);
                step = 1'b0;
                cycles = 1;
                while (!done) begin
                    @(negedge clk);
                    cycles = cycles + 1;
                end
                @(negedge clk);
                if (cycles < least) least = cycles;
                if (cycles > most) most = cycles;
                total = total + cycles;
{compared}
            end
        end
        if (wrong == 0)
            $display("equal: {count} steps, %0d to %0d cycles, %0d in all", least, most, total);
        else
            $display("different: %0d of {count} steps", wrong);
        $finish(0);
    end
endmodule
"""
_GIVEN = """\
                for (place = 0; place < {size}; place = place + 1)
                    if (recorded_{name}[t][place*{bits} +: {bits}] != {bits}'d0) begin
                        {name}_valid = 1'b1;
                        {name}_address = place[{last}:0];
                        {name}_value = recorded_{name}[t][place*{bits} +: {bits}];
                        @(negedge clk);
                    end
                {name}_valid = 1'b0;"""
_COLLECTED = """\
    always @(posedge clk)
        if (step) got_{name} <= {width}'d0;
        else if ({name}_valid) got_{name}[{name}_address*{bits} +: {bits}] <= {name}_value;"""
_COMPARED = """\
                if (got_{name} !== expected_{name}[t]) begin
                    wrong = wrong + 1;
                    if (wrong < 10) $display("step %0d: {name} is %h, not %h", t, got_{name},
                        expected_{name}[t]);
                end"""
MAKEFILE = """\
# make sim: play the recorded input, and compare; make verilated: the same, faster
# make lint, make synth (cells), make layers (cells of each module), make route (clock)
# make netlist: play it after synthesis; make netlist_verilated: the same, faster
# FAMILY=ecp5 for a Lattice ECP5, whose netlist is without multipliers: yosys has no model of them
SOURCES = {sources}
FAMILY ?= ice40
ICE40 ?= --up5k --package sg48
ECP5 ?= --25k --package CABGA381
LIBRARY ?= /usr/share/yosys
NETLIST = -I$(LIBRARY)/$(FAMILY) testbench.v netlist_$(FAMILY).v $(LIBRARY)/$(FAMILY)/cells_sim.v
WRITE_ice40 = write_verilog -noattr netlist_ice40.v;

sim: sim.vvp
\tvvp -n sim.vvp | tee sim.log
\t@grep -q "^equal" sim.log

sim.vvp: testbench.v $(SOURCES)
\tiverilog -g2005 -Wall -o $@ testbench.v $(SOURCES)

verilated: verilated/Vtestbench
\tverilated/Vtestbench | tee verilated.log
\t@grep -q "^equal" verilated.log

verilated/Vtestbench: testbench.v $(SOURCES)
\tverilator --binary -O3 --Mdir verilated --top-module testbench testbench.v $(SOURCES)

lint: $(SOURCES)
\tverilator --lint-only -Wall --top-module network $(SOURCES)

synth: network_$(FAMILY).json
\t@cat cells_$(FAMILY).txt

network_$(FAMILY).json: $(SOURCES)
\tyosys -q -l synth.log -p "read_verilog $(SOURCES); synth_$(FAMILY) -top network -json $@; \\
\t  $(WRITE_$(FAMILY)) tee -q -o cells_$(FAMILY).txt stat"

netlist_ice40.v: network_ice40.json ;
netlist_ecp5.v: $(SOURCES)
\tyosys -q -p "read_verilog $(SOURCES); synth_ecp5 -nodsp -top network; write_verilog -noattr $@"

layers: layers_$(FAMILY).txt
\t@cat $<

layers_$(FAMILY).txt: $(SOURCES)
\tyosys -q -l layers.log -p "read_verilog $(SOURCES); synth_$(FAMILY) -noflatten -top network; \\
\t  tee -q -o $@ stat -top network"

netlist: netlist_$(FAMILY).v testbench.v
\tiverilog -g2005 -DNO_ICE40_DEFAULT_ASSIGNMENTS -o netlist.vvp $(NETLIST)
\tvvp -n netlist.vvp | tee netlist.log
\t@grep -q "^equal" netlist.log

netlist_verilated: netlist_$(FAMILY)/Vtestbench
\t$< | tee netlist.log
\t@grep -q "^equal" netlist.log

netlist_$(FAMILY)/Vtestbench: netlist_$(FAMILY).v testbench.v
\tverilator --binary -O3 -Wno-fatal -Wno-lint -DNO_ICE40_DEFAULT_ASSIGNMENTS \\
\t  --Mdir netlist_$(FAMILY) --top-module testbench $(NETLIST)

route: route_$(FAMILY)

route_ice40: network_ice40.json
\tnextpnr-ice40 $(ICE40) --json $< --asc network.asc -q -l route.log
\t@grep -E "ICESTORM_.*%|Max frequency for clock" route.log

route_ecp5: network_ecp5.json
\tnextpnr-ecp5 $(ECP5) --json $< --textcfg network.config -q -l route.log
\t@grep -E "(TRELLIS_|DP16|MULT18).*%|Max frequency for clock" route.log

clean:
\trm -rf verilated netlist_* cells_*.txt layers_*.txt *.vvp *.log *.json *.asc *.config

.PHONY: sim verilated lint synth layers netlist netlist_verilated route route_ice40 route_ecp5 clean
"""


def recorded_files(
    network: Network, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> dict[str, str]:
    """Return the files of a recording, ``[T, B, ...]`` by label, stream after stream."""
    files = {}
    for ends, values in ((network.inputs, inputs), (network.outputs, outputs)):
        for end in ends:
            streams = values[end.label].transpose(0, 1)
            files[f"recorded_{end.name}.hex"] = hex_words(streams, end.store.word.bits, end.size)
    return files


def bench_module(network: Network, streams: int, steps: int) -> str:
    """Return the testbench: it plays streams of so many steps."""
    declarations, ports, loads, given, silent, collected, compared = ([] for _ in range(7))
    for end in (*network.inputs, *network.outputs):
        name, bits, incoming = end.name, end.store.word.bits, end in network.inputs
        kind = "reg" if incoming else "wire"
        width, what = end.size * bits, "recorded" if incoming else "expected"
        declarations += [
            f"    {kind} {name}_valid;",
            f"    {kind} [{end.address - 1}:0] {name}_address;",
            f"    {kind} [{bits - 1}:0] {name}_value;",
            f"    reg [{width - 1}:0] {what}_{name} [0:{streams * steps - 1}];",
        ]
        loads.append(f'        $readmemh("recorded_{name}.hex", {what}_{name});')
        ports += [f".{name}_{part}({name}_{part})" for part in ("valid", "address", "value")]
        if incoming:
            declarations.append(f"    wire {name}_ready;")
            ports.append(f".{name}_ready({name}_ready)")
            silent.append(f"        {name}_valid = 1'b0;")
            given.append(_GIVEN.format(name=name, size=end.size, bits=bits, last=end.address - 1))
        else:
            declarations.append(f"    reg [{width - 1}:0] got_{name};")
            ports.append(f".{name}_ready(1'b1)")
            collected.append(_COLLECTED.format(name=name, width=width, bits=bits))
            compared.append(_COMPARED.format(name=name))
    return _TESTBENCH.format(
        declarations="\n".join(declarations), ports="".join(f",\n        {port}" for port in ports),
        collected="\n".join(collected), loads="\n".join(loads), silent="\n".join(silent),
        given="\n".join(given), compared="\n".join(compared), streams=streams, steps=steps,
        count=streams * steps,
    )  # fmt: skip
