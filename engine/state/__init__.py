"""The only place that talks to Redis or Valkey: key names, binary layouts, scripts, the control partition, the embedded server.

The law of this folder: what must be atomic is one Lua script per verb (lua/*.lua), each taking a batch; nothing outside this
folder knows a key name, a layout or a connection; nothing in here knows a rule that is not about state.
"""
