"""A model behind an interface: the batching queue, and the provider that Inspect finds as `midward/<model>`."""
