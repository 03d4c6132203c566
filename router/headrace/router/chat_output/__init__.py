"""Takes reasoning and tool calls out of what a chat model writes."""
