"""Programs: any Python callable with named text parameters, trained by inference over its intermediate texts."""
