"""Write a model of integers as Verilog: one step as a circuit, layers with memories, a network."""
