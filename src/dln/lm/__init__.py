"""The only room that talks to a language model: the protocol, the engines, and wrappers that are models themselves."""
