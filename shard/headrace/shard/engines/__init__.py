"""The engines, each imported only when it is asked for."""
