"""The paper's comparison and related experiments: methods, cells, tables, search over options, and headroom."""
