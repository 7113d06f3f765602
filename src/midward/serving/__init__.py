"""A model behind an interface: the engine, and the provider that Inspect finds as `midward/<model>`."""
