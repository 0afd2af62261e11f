"""Language models: the protocol, the engines, and wrappers (cache, meter) that are models themselves."""
