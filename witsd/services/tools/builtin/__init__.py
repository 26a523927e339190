"""The tools that come with witsd, one module each; a module's ``TOOLS`` are registered."""

#: Loaded when the first tool is asked for.
MODULES = ("calculator", "time", "files", "memory", "agents", "web", "python", "shell")
