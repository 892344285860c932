"""The public contract of pickgate, as Python modules generated from the .proto files beside them."""
