"""The commands of `pickgate`, one module per noun; `server.cli` puts them together."""
